// Spans of time as people write them: "500ms", "6s", "10m", "1.5h".
#pragma once
#include <chrono>
#include <optional>
#include <string>

namespace exfusion {

// A number above 0 with its unit (ms, s, m, h), at most 1000 hours; nullopt for anything else.
std::optional<std::chrono::milliseconds> parse_duration(const std::string& text);

// In seconds, for messages: "0.5 s".
std::string duration_text(std::chrono::milliseconds span);

}  // namespace exfusion
