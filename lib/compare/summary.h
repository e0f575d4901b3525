// From the results of runs to what is said about each arm.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "compare/planned_run.h"
#include "compare/statistics.h"

namespace exfusion {

// The runs of one arm in one stage, a result for each seed: nullopt where the run failed.
struct ArmRuns {
  Arm arm;
  std::string value;                // of the tuned key; "": not tuned
  bool equal_steps_run = false;     // in a matched stage: no run of its own, its steps are the recipe's
  bool identical_to_dense = false;  // refused as such
  std::vector<std::optional<RunResult>> runs;
};

// How an arm compares to dense, and a candidate to the best control; all differences paired by seed.
struct Difference {
  double mean = 0.0, deviation = 0.0;
  Interval interval, bootstrap;  // at 95 %
  double p = 1.0, p_holm = 1.0;
  Interval corrected;                        // at 1 - corrected_level
  std::optional<Interval> to_best_control;   // corrected likewise; candidates only
  std::optional<std::int64_t> seeds_needed;  // for kSmallestEffect
};

struct ArmSummary {
  ArmRuns of;
  std::int64_t steps = 0;
  bool complete = false;                 // all seeds are there, two or more
  double mean = 0.0, deviation = 0.0;    // of the accuracy, if complete
  std::optional<Difference> difference;  // nullopt: dense itself, or nothing to compare
  std::string verdict;
};

struct StageSummary {
  std::vector<ArmSummary> arms;
  std::size_t tested = 0;    // arms tested against dense: what is corrected for
  std::string best_control;  // the control with the highest mean accuracy
};

// `tuned_alike`: every arm was tuned over the same grid with as many trials. The first arm named dense is
// what the others are compared to; an arm that lacks a run is not compared.
StageSummary summarise(const std::vector<ArmRuns>& arms, bool tuned_alike);

}  // namespace exfusion
