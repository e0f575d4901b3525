#include "compare/tuning.h"

#include <algorithm>

#include "compare/statistics.h"

namespace exfusion {
namespace {

void choose(ArmTuning& tuning) {
  const Trial* best = nullptr;
  for (const Trial& trial : tuning.trials) {
    if (trial.mean && (!best || *trial.mean > *best->mean)) best = &trial;
  }
  if (!best) return;
  tuning.chosen = best->value;
  const auto [low, high] = std::ranges::minmax_element(
      tuning.trials, {}, [](const Trial& trial) { return std::stod(trial.value); });
  tuning.at_edge = best->value == low->value || best->value == high->value;
}

}  // namespace

bool ArmTuning::complete() const {
  return std::ranges::all_of(trials, [](const Trial& trial) { return trial.mean.has_value(); });
}

std::vector<ArmTuning> choose_values(const ComparisonPlan& plan, const std::vector<PlannedRun>& runs,
                                     const RunResults& results) {
  std::vector<ArmTuning> tunings;
  if (!plan.grid) return tunings;
  for (const Arm& arm : plan.arms) {
    ArmTuning& tuning = tunings.emplace_back();
    tuning.arm = arm.name;
    for (const std::string& value : plan.grid->values) {
      Trial& trial = tuning.trials.emplace_back();
      trial.value = value;
      std::vector<double> known;
      for (const PlannedRun& run : runs) {
        if (run.arm != arm.name || run.value != value) continue;
        const auto found = results.find(run.name);
        if (found != results.end() && found->second.identical_to_dense) tuning.identical_to_dense = true;
        trial.accuracy.push_back(found == results.end() ? std::nullopt : found->second.validation_accuracy);
        if (trial.accuracy.back()) known.push_back(*trial.accuracy.back());
      }
      if (!known.empty() && known.size() == trial.accuracy.size()) trial.mean = mean(known);
    }
    choose(tuning);
  }
  return tunings;
}

}  // namespace exfusion
