// Spans of time as people write them, "500ms", "6s", "10m", "1.5h", and as they pass.
#pragma once
#include <chrono>
#include <optional>
#include <string>

namespace exfusion {

// A number above 0 with its unit (ms, s, m, h), at most 1000 hours; nullopt for anything else.
std::optional<std::chrono::milliseconds> parse_duration(const std::string& text);

// In seconds, for messages: "0.5 s".
std::string duration_text(std::chrono::milliseconds span);

// As a clock shows them, for what took long or is left to wait for: "1:02:03", "2:03"; below 0 "0:00".
std::string clock_text(double seconds);

// Seconds from `start` until now.
double seconds_since(std::chrono::steady_clock::time_point start);

}  // namespace exfusion
