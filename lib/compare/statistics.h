// Statistics of paired differences: an arm's accuracy minus dense's, one number per seed. Everything here is
// a pure function; random draws are counter-based with a fixed seed, so the same numbers give the same
// answer.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace exfusion {

struct Interval {
  double low = 0.0, high = 0.0;
};

inline constexpr double kLevel = 0.05;              // two-sided, of every test and interval before correction
inline constexpr double kPower = 0.8;               // at which seeds_needed aims
inline constexpr std::size_t kEnumerated = 20;      // up to so many differences all sign patterns are tried
inline constexpr std::int64_t kSignDraws = 100000;  // with more, this many random ones
inline constexpr std::int64_t kResamples = 10000;   // of the bootstrap
inline constexpr std::int64_t kMostSeeds = 100000;  // that seeds_needed answers

double mean(std::span<const double> values);                // of at least one value
double standard_deviation(std::span<const double> values);  // divisor n - 1; of at least two values

// mean +- t_{n-1} sd / sqrt(n): Student's interval for the mean of at least two differences.
Interval t_interval(std::span<const double> differences, double confidence);

// Percentile bootstrap of the mean (Efron and Tibshirani 1993, chapter 13), quantiles interpolated linearly.
Interval bootstrap_interval(std::span<const double> differences, double confidence);

// Two-sided permutation test of "the differences are symmetric around 0" (Fisher 1935): the share of sign
// patterns whose |sum| is at least the one observed, ties up to rounding counted. Exact for at most
// kEnumerated differences; beyond, (1 + hits) / (1 + draws) over random patterns (Phipson and Smyth 2010).
double sign_flip_p(std::span<const double> differences);

// The smallest p that sign_flip_p can give for n differences: 2 / 2^n where it enumerates.
double smallest_p(std::size_t n);

// Holm's step-down correction (Holm 1979): adjusted p values, in the order given.
std::vector<double> holm(std::span<const double> p);

// Power of the two-sided paired t test at kLevel with n differences of this standard deviation when the true
// mean is `effect`; by the noncentral t distribution (Cohen 1988, chapter 2). deviation > 0, n >= 2.
double paired_power(std::int64_t n, double effect, double deviation);

// The smallest n >= 2 with paired_power >= kPower; nullopt above kMostSeeds.
std::optional<std::int64_t> seeds_needed(double effect, double deviation);

}  // namespace exfusion
