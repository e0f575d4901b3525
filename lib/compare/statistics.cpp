#include "compare/statistics.h"

#include <algorithm>
#include <bit>
#include <boost/math/distributions/non_central_t.hpp>
#include <boost/math/distributions/students_t.hpp>
#include <cmath>
#include <numeric>

#include "core/random.h"

namespace exfusion {
namespace {

// The p-quantile of sorted values, between two of them linearly.
double quantile(const std::vector<double>& sorted, double p) {
  const double place = p * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(place);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (place - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

double signed_sum(std::span<const double> values, std::uint64_t negative) {
  double sum = 0.0;
  for (std::size_t i = 0; i < values.size(); ++i) sum += (negative >> i & 1) ? -values[i] : values[i];
  return sum;
}

double t_quantile(std::int64_t n, double p) {
  return boost::math::quantile(boost::math::students_t(static_cast<double>(n - 1)), p);
}

// How many of the 2^n sign patterns have an |sum| of at least `bound`, over all of them. A pattern and its
// negative have the same |sum|: the last sign stays as it is.
double enumerated_share(std::span<const double> differences, double bound) {
  const std::uint64_t half = std::uint64_t{1} << (differences.size() - 1);
  std::uint64_t hits = 0;
  for (std::uint64_t pattern = 0; pattern < half; ++pattern)
    hits += std::abs(signed_sum(differences, pattern)) >= bound;
  return static_cast<double>(hits) / static_cast<double>(half);
}

double drawn_share(std::span<const double> differences, double bound) {
  std::int64_t hits = 0;
  for (std::int64_t draw = 0; draw < kSignDraws; ++draw) {
    CounterRandom random(0, Draw::resampling, 1, static_cast<std::uint32_t>(draw));
    double sum = 0.0;
    for (const double difference : differences) sum += random.bits() & 1 ? difference : -difference;
    hits += std::abs(sum) >= bound;
  }
  return static_cast<double>(1 + hits) / static_cast<double>(1 + kSignDraws);
}

}  // namespace

double mean(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double standard_deviation(std::span<const double> values) {
  const double center = mean(values);
  double squares = 0.0;
  for (const double value : values) squares += (value - center) * (value - center);
  return std::sqrt(squares / static_cast<double>(values.size() - 1));
}

Interval t_interval(std::span<const double> differences, double confidence) {
  const auto n = static_cast<std::int64_t>(differences.size());
  const double center = mean(differences);
  const double half = t_quantile(n, 0.5 + 0.5 * confidence) * standard_deviation(differences) /
                      std::sqrt(static_cast<double>(n));
  return {center - half, center + half};
}

Interval bootstrap_interval(std::span<const double> differences, double confidence) {
  const auto n = static_cast<std::uint32_t>(differences.size());
  std::vector<double> means(kResamples);
  for (std::int64_t resample = 0; resample < kResamples; ++resample) {
    CounterRandom random(0, Draw::resampling, 0, static_cast<std::uint32_t>(resample));
    double sum = 0.0;
    for (std::uint32_t i = 0; i < n; ++i) sum += differences[random.below(n)];
    means[static_cast<std::size_t>(resample)] = sum / n;
  }
  std::ranges::sort(means);
  return {quantile(means, 0.5 - 0.5 * confidence), quantile(means, 0.5 + 0.5 * confidence)};
}

double sign_flip_p(std::span<const double> differences) {
  double scale = 0.0;
  for (const double difference : differences) scale += std::abs(difference);
  // Accuracies are multiples of 1 / images: equal sums that differ by rounding are frequent.
  const double bound = std::abs(signed_sum(differences, 0)) - 1e-9 * scale;
  return differences.size() <= kEnumerated ? enumerated_share(differences, bound)
                                           : drawn_share(differences, bound);
}

double smallest_p(std::size_t n) {
  return n > kEnumerated ? 1.0 / static_cast<double>(1 + kSignDraws) : std::ldexp(2.0, -static_cast<int>(n));
}

std::vector<double> holm(std::span<const double> p) {
  std::vector<std::size_t> order(p.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::stable_sort(order, {}, [&](std::size_t i) { return p[i]; });
  std::vector<double> adjusted(p.size());
  double running = 0.0;
  for (std::size_t rank = 0; rank < order.size(); ++rank) {
    running = std::max(running, static_cast<double>(p.size() - rank) * p[order[rank]]);
    adjusted[order[rank]] = std::min(1.0, running);
  }
  return adjusted;
}

double paired_power(std::int64_t n, double effect, double deviation) {
  const double shift = std::abs(effect) * std::sqrt(static_cast<double>(n)) / deviation;
  if (shift > 30.0) return 1.0;  // above 0.98 even for n = 2; the series below would not converge
  const double critical = t_quantile(n, 1.0 - kLevel / 2);
  const boost::math::non_central_t shifted(static_cast<double>(n - 1), shift);
  return boost::math::cdf(boost::math::complement(shifted, critical)) + boost::math::cdf(shifted, -critical);
}

std::optional<std::int64_t> seeds_needed(double effect, double deviation) {
  if (deviation == 0.0) return 2;
  std::int64_t enough = 2;
  while (paired_power(enough, effect, deviation) < kPower) {
    enough *= 2;
    if (enough > 2 * kMostSeeds) return std::nullopt;
  }
  std::int64_t too_few = enough == 2 ? 1 : enough / 2;  // power grows with n
  while (enough - too_few > 1) {
    const std::int64_t middle = (enough + too_few) / 2;
    (paired_power(middle, effect, deviation) < kPower ? too_few : enough) = middle;
  }
  return enough <= kMostSeeds ? std::optional(enough) : std::nullopt;
}

}  // namespace exfusion
