// JSON from outside, parsed within bounds.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace exfusion {

// Parses one JSON object nested at most 32 deep (deeper ones would overflow the stack of whoever copies
// them). `name` is for messages. Throws FormatError.
nlohmann::json parse_json_object(const std::string& text, const std::string& name);

}  // namespace exfusion
