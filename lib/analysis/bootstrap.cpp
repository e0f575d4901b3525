#include "analysis/bootstrap.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "analysis/draws.h"

namespace exfusion::analysis {

Resample resample_batches(std::size_t batches, std::uint32_t repetition) {
  Resample times{std::vector<double>(batches, 0.0), std::vector<double>(batches, 0.0),
                 std::vector<double>(batches, 0.0)};
  CounterRandom random = draw(Purpose::batches, repetition);
  const auto evens = static_cast<std::uint32_t>((batches + 1) / 2);
  const auto odds = static_cast<std::uint32_t>(batches / 2);
  for (std::uint32_t i = 0; i < evens; ++i) times.even[2 * random.below(evens)] += 1.0;
  for (std::uint32_t i = 0; i < odds; ++i) times.odd[2 * random.below(odds) + 1] += 1.0;
  for (std::size_t b = 0; b < batches; ++b) times.all[b] = times.even[b] + times.odd[b];
  return times;
}

Resample every_batch(std::size_t batches) {
  Resample times{std::vector<double>(batches, 0.0), std::vector<double>(batches, 0.0),
                 std::vector<double>(batches, 1.0)};
  for (std::size_t b = 0; b < batches; ++b) (b % 2 == 0 ? times.even : times.odd)[b] = 1.0;
  return times;
}

Quantity undefined(std::string reason) {
  return {0.0, std::move(reason)};
}

Quantity quantity(const std::optional<double>& value, const std::string& reason) {
  return value && std::isfinite(*value) ? Quantity{*value, ""} : undefined(reason);
}

Interval percentile_interval(std::vector<double> values, double tail) {
  if (values.empty()) return {0.0, 0.0, "no resamples"};
  for (double& value : values) {
    if (std::isnan(value)) value = INFINITY;
  }
  std::ranges::sort(values);
  const auto quantile = [&](double part) {
    const double place = part * static_cast<double>(values.size() - 1);
    const auto below = static_cast<std::size_t>(place);
    const double weight = place - static_cast<double>(below);
    if (weight == 0.0) return values[below];
    return (1.0 - weight) * values[below] + weight * values[below + 1];
  };
  const Interval found{quantile(tail), quantile(1.0 - tail), ""};
  if (std::isfinite(found.low) && std::isfinite(found.high)) return found;
  return {0.0, 0.0, "too many of the resamples have no finite estimate"};
}

double expanded_tail(std::size_t batches) {
  const double half = static_cast<double>(batches / 2), freedom = static_cast<double>(batches - 2);
  const double z = 1.959963984540054, z2 = z * z;
  // Student's quantile from the normal one, to third order in 1 / freedom (Cornish and Fisher 1937).
  const double t =
      z + z * (z2 + 1.0) / (4.0 * freedom) +
      z * (5.0 * z2 * z2 + 16.0 * z2 + 3.0) / (96.0 * freedom * freedom) +
      z * (3.0 * z2 * z2 * z2 + 19.0 * z2 * z2 + 17.0 * z2 - 15.0) / (384.0 * freedom * freedom * freedom);
  return 0.5 * std::erfc(t * std::sqrt(half / (half - 1.0)) / std::numbers::sqrt2);
}

}  // namespace exfusion::analysis
