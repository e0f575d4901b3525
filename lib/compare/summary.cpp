#include "compare/summary.h"

#include <fmt/format.h>

#include <algorithm>

#include "compare/verdict.h"

namespace exfusion {
namespace {

bool is_complete(const ArmRuns& arm) {
  return !arm.identical_to_dense && arm.runs.size() >= 2 &&
         std::ranges::all_of(arm.runs, [](const auto& run) { return run.has_value(); });
}

std::vector<double> accuracies(const ArmRuns& arm) {
  std::vector<double> values;
  for (const auto& run : arm.runs) values.push_back(run->accuracy);
  return values;
}

std::vector<double> paired(const ArmRuns& arm, const ArmRuns& reference) {
  std::vector<double> differences = accuracies(arm);
  const std::vector<double> base = accuracies(reference);
  for (std::size_t i = 0; i < base.size(); ++i) differences[i] -= base[i];
  return differences;
}

std::string absence(const ArmRuns& arm) {
  if (arm.identical_to_dense) return "identical to dense, not run";
  if (arm.runs.empty()) return "not compared: it has no runs";
  const auto missing = std::ranges::count_if(arm.runs, [](const auto& run) { return !run; });
  return fmt::format("not compared: {} of {} runs are missing", missing, arm.runs.size());
}

Difference compare(const ArmRuns& arm, const ArmRuns& dense, const ArmRuns& best_control,
                   std::size_t tested) {
  const std::vector<double> differences = paired(arm, dense);
  const double confidence = 1.0 - corrected_level(tested);
  Difference result;
  result.mean = mean(differences);
  result.deviation = standard_deviation(differences);
  result.interval = t_interval(differences, 1.0 - kLevel);
  result.bootstrap = bootstrap_interval(differences, 1.0 - kLevel);
  result.p = sign_flip_p(differences);
  result.corrected = t_interval(differences, confidence);
  if (!arm.arm.control) result.to_best_control = t_interval(paired(arm, best_control), confidence);
  result.seeds_needed = seeds_needed(kSmallestEffect, result.deviation);
  return result;
}

const ArmSummary* find_best_control(const std::vector<ArmSummary>& arms) {
  const ArmSummary* best = nullptr;
  for (const ArmSummary& arm : arms) {
    if (arm.of.arm.control && arm.complete && (!best || arm.mean > best->mean)) best = &arm;
  }
  return best;
}

void correct(std::vector<ArmSummary>& arms) {
  std::vector<double> p;
  for (const ArmSummary& arm : arms) {
    if (arm.difference) p.push_back(arm.difference->p);
  }
  const std::vector<double> adjusted = holm(p);
  std::size_t next = 0;
  for (ArmSummary& arm : arms) {
    if (arm.difference) arm.difference->p_holm = adjusted[next++];
  }
}

}  // namespace

StageSummary summarise(const std::vector<ArmRuns>& arms, bool tuned_alike) {
  StageSummary stage;
  for (const ArmRuns& runs : arms) {
    ArmSummary arm{runs};
    for (const auto& run : runs.runs) {
      if (run) arm.steps = run->steps;
    }
    arm.complete = is_complete(runs);
    if (arm.complete) {
      arm.mean = mean(accuracies(runs));
      arm.deviation = standard_deviation(accuracies(runs));
    }
    stage.arms.push_back(std::move(arm));
  }
  const auto dense = std::ranges::find(arms, "dense", [](const ArmRuns& runs) { return runs.arm.name; });
  const bool comparable = dense != arms.end() && is_complete(*dense);
  const ArmSummary* best = find_best_control(stage.arms);
  if (best) stage.best_control = best->of.arm.name;
  stage.tested = static_cast<std::size_t>(std::ranges::count_if(
      arms, [](const ArmRuns& runs) { return runs.arm.name != "dense" && !runs.identical_to_dense; }));
  for (ArmSummary& arm : stage.arms) {
    if (!arm.complete) {
      arm.verdict = absence(arm.of);
    } else if (arm.of.arm.name == "dense") {
      arm.verdict = "what the others are compared to";
    } else if (!comparable) {
      arm.verdict = "not compared: runs of dense are missing";
    } else {
      arm.difference = compare(arm.of, *dense, best->of, stage.tested);
      arm.verdict = verdict({arm.of.arm.control, tuned_alike, arm.of.runs.size(), stage.tested,
                             arm.difference->corrected, arm.difference->to_best_control.value_or(Interval{}),
                             arm.difference->deviation});
    }
  }
  correct(stage.arms);
  return stage;
}

}  // namespace exfusion
