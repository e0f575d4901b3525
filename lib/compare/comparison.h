// A comparison from its first run to its report.
#pragma once
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "compare/folder.h"
#include "compare/summary.h"
#include "compare/tuning.h"

namespace exfusion {

struct ComparisonResult {
  std::vector<ArmTuning> tuning;
  StageSummary equal_steps;
  std::optional<StageSummary> flops, time;  // where asked for
  std::vector<std::string> failures;        // one line for each run that failed
};

// Does the runs that are missing, stage by stage: tuning, equal steps, equal FLOPs, equal time; fills in
// plan.matched and writes it. `report` is called with what is known after each stage but tuning. A failed run
// is shown and remembered, the others go on. Throws Interrupted after Ctrl-C, once all children have saved
// and ended.
ComparisonResult run_comparison(ComparisonPlan& plan, const ComparisonFolder& folder, const Launch& launch,
                                const std::function<void(const ComparisonResult&)>& report);

// Within this ratio a median step time is dense's own: the clock of a shared machine knows no better.
inline constexpr double kSameTime = 0.01;

// The steps with which an arm costs what dense costs in plan.steps: in FLOPs per sample, or in the median
// time of a step, as the median of the ratios to dense's run of the same seed. Throws FormatError when a run
// recorded no FLOPs.
std::int64_t steps_at_equal_flops(std::int64_t steps, const ArmRuns& dense, const ArmRuns& arm);
std::int64_t steps_at_equal_time(std::int64_t steps, const ArmRuns& dense, const ArmRuns& arm);

}  // namespace exfusion
