#include "io/json_text.h"

#include <nlohmann/json.hpp>

#include "core/error.h"

namespace exfusion {

nlohmann::json parse_json_object(const std::string& text, const std::string& name) {
  constexpr int kMaxDepth = 32;
  const auto bounded = [&](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    if (depth > kMaxDepth) throw FormatError(name + ": JSON nested more than 32 deep");
    return true;
  };
  nlohmann::json value = nlohmann::json::parse(text, bounded, /*allow_exceptions=*/false);
  if (!value.is_object()) throw FormatError(name + ": not a JSON object");
  return value;
}

}  // namespace exfusion
