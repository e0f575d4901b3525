#include "core/duration.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <utility>

namespace exfusion {

std::optional<std::chrono::milliseconds> parse_duration(const std::string& text) {
  constexpr double kLongest = 1000.0 * 3600e3;
  double number = 0.0;
  const auto [rest, error] =
      std::from_chars(text.data(), text.data() + text.size(), number, std::chars_format::fixed);
  if (error != std::errc()) return std::nullopt;
  const std::string unit(rest, text.data() + text.size());
  for (const auto& [name, milliseconds] : {std::pair{"ms", 1.0}, {"s", 1e3}, {"m", 60e3}, {"h", 3600e3}}) {
    const double span = number * milliseconds;
    if (unit == name && span >= 1.0 && span <= kLongest)
      return std::chrono::milliseconds(static_cast<std::int64_t>(span));
  }
  return std::nullopt;
}

std::string duration_text(std::chrono::milliseconds span) {
  return fmt::format("{:g} s", static_cast<double>(span.count()) / 1000.0);
}

std::string clock_text(double seconds) {
  const auto whole = static_cast<std::int64_t>(std::llround(std::max(0.0, seconds)));
  if (whole >= 3600) return fmt::format("{}:{:02d}:{:02d}", whole / 3600, whole / 60 % 60, whole % 60);
  return fmt::format("{}:{:02d}", whole / 60, whole % 60);
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace exfusion
