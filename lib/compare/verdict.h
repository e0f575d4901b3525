// The rule that turns numbers into words. docs/compare.md states it for readers.
#pragma once
#include <cstddef>
#include <string>

#include "compare/statistics.h"

namespace exfusion {

inline constexpr double kSmallestEffect = 0.003;  // 0.3 points of accuracy: what a comparison should see

struct VerdictFacts {
  bool control = false;      // controls are judged against dense alone
  bool tuned_alike = false;  // all arms over the same grid with as many trials
  std::size_t seeds = 0;
  std::size_t arms = 0;      // tested against dense: what the level is divided by
  Interval to_dense;         // paired t intervals at the confidence 1 - corrected_level(arms)
  Interval to_best_control;  // not for controls
  double deviation = 0.0;    // of the paired differences to dense
};

// Bonferroni: kLevel over the number of arms tested.
double corrected_level(std::size_t arms);

// "cannot be decided with n seeds", "gain", "loss", "no gain can be claimed: not tuned alike", "differs from
// dense: higher" (or lower) for controls, or "no difference shown, n seeds would be needed for 0.3 points"
// (with "to the best control (higher than dense)" where an arm beats dense alone).
std::string verdict(const VerdictFacts& facts);

}  // namespace exfusion
