// Each arm's own value of the tuned key, chosen by held-out training images.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "compare/plan.h"

namespace exfusion {

using RunResults = std::map<std::string, RunResult>;  // by PlannedRun::name; a run that failed has none

struct Trial {
  std::string value;
  std::vector<std::optional<double>> accuracy;  // on the held-out images, per tuning seed
  std::optional<double> mean;                   // where all seeds are there
};

struct ArmTuning {
  std::string arm;
  std::vector<Trial> trials;          // one for each value of the grid
  std::optional<std::string> chosen;  // the best mean, the first of equals; nullopt: no trial is whole
  bool at_edge = false;               // the smallest or largest value: the best may lie outside of the grid
  bool identical_to_dense = false;    // refused as such: nothing to tune
  bool complete() const;              // as many trials as every other arm
};

std::vector<ArmTuning> choose_values(const ComparisonPlan& plan, const std::vector<PlannedRun>& runs,
                                     const RunResults& results);

}  // namespace exfusion
