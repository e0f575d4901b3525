// Bootstrap over batches: tokens of one text depend on each other, batches do not (Efron and Tibshirani 1993,
// chapter 8).
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace exfusion::analysis {

inline constexpr std::uint32_t kResamples = 1000;
inline constexpr std::size_t kFewestBatches = 4;  // two in each half

// How often each batch is drawn, [B]. Batches with even and odd numbers are drawn apart, so that the two
// halves of a resample stay independent. The same for every layer with that many batches.
struct Resample {
  std::vector<double> even, odd, all;
};
Resample resample_batches(std::size_t batches, std::uint32_t repetition);
// Each batch once.
Resample every_batch(std::size_t batches);

// A number, or why it is undefined.
struct Quantity {
  double value = 0.0;
  std::string reason;
  bool defined() const { return reason.empty(); }
};
Quantity undefined(std::string reason);
// The value, or the reason where it is missing or not finite.
Quantity quantity(const std::optional<double>& value, const std::string& reason);

struct Interval {
  double low = 0.0, high = 0.0;
  std::string reason;
  bool defined() const { return reason.empty(); }
};
// The `tail` and 1 - `tail` quantiles, interpolated linearly; undefined when one of them is not finite (a NaN
// counts as beyond every number).
Interval percentile_interval(std::vector<double> values, double tail);

// The tail of a 95 % interval over this many batches, two halves resampled apart: less than 0.025, since
// resampling few batches shows too little spread (expanded percentiles, Hesterberg 2015, The American
// Statistician 69).
double expanded_tail(std::size_t batches);

}  // namespace exfusion::analysis
