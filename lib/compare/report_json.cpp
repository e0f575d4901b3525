#include <nlohmann/json.hpp>

#include "compare/report.h"
#include "compare/verdict.h"

namespace exfusion {
namespace {

using json = nlohmann::ordered_json;

json or_null(const std::optional<double>& value) {
  return value ? json(*value) : json(nullptr);
}

json to_json(const Interval& interval) {
  return json::array({interval.low, interval.high});
}

// The mean over the runs that are there of what each recorded.
json mean_of(const ArmRuns& arm, std::optional<double> (*recorded)(const RunResult&)) {
  std::vector<double> known;
  for (const auto& run : arm.runs) {
    if (run && recorded(*run)) known.push_back(*recorded(*run));
  }
  return known.empty() ? json(nullptr) : json(mean(known));
}

void add_difference(json& to, const ArmSummary& arm) {
  const Difference empty;
  const auto& difference = arm.difference;
  const auto put = [&](const char* key, const json& value) { to[key] = difference ? value : json(nullptr); };
  const Difference& known = difference ? *difference : empty;
  put("difference", known.mean);
  put("difference_std", known.deviation);
  put("difference_ci", to_json(known.interval));
  put("bootstrap_ci", to_json(known.bootstrap));
  put("corrected_ci", to_json(known.corrected));
  put("best_control_ci", known.to_best_control ? to_json(*known.to_best_control) : json(nullptr));
  put("p", known.p);
  put("p_holm", known.p_holm);
  put("seeds_needed", known.seeds_needed ? json(*known.seeds_needed) : json(nullptr));
}

json arm_json(const ComparisonPlan& plan, const ArmSummary& arm) {
  const ArmRuns& of = arm.of;
  const bool lr_tuned = plan.grid && plan.grid->key == "optim.lr" && !of.value.empty();
  json accuracy = json::array();
  for (const auto& run : of.runs)
    accuracy.push_back(run && !of.identical_to_dense ? json(run->accuracy) : json(nullptr));
  json out = {{"name", of.arm.name},
              {"control", of.arm.control},
              {"identical_to_dense", of.identical_to_dense},
              {"equal_steps_run", of.equal_steps_run},
              {"steps", arm.steps},
              {"lr", lr_tuned ? std::stod(of.value) : plan.lr},
              {"accuracy", accuracy},
              {"mean", arm.complete ? json(arm.mean) : json(nullptr)},
              {"std", arm.complete ? json(arm.deviation) : json(nullptr)}};
  add_difference(out, arm);
  out["verdict"] = arm.verdict;
  out["parameters_deployed"] = mean_of(of, [](const RunResult& run) { return run.parameters_deployed; });
  out["parameters_training"] = mean_of(of, [](const RunResult& run) { return run.parameters_training; });
  out["flops_per_sample"] = mean_of(of, [](const RunResult& run) { return run.flops_per_sample; });
  out["peak_memory"] = mean_of(of, [](const RunResult& run) { return run.peak_memory; });
  out["step_time"] = mean_of(of, [](const RunResult& run) { return std::optional(run.step_time); });
  out["seconds"] = mean_of(of, [](const RunResult& run) { return std::optional(run.seconds); });
  return out;
}

json arms_json(const ComparisonPlan& plan, const StageSummary& stage) {
  json arms = json::array();
  for (const ArmSummary& arm : stage.arms) arms.push_back(arm_json(plan, arm));
  return arms;
}

json tuning_json(const ComparisonPlan& plan, const std::vector<ArmTuning>& tuning) {
  if (!plan.grid) return nullptr;
  json seeds = json::array(), arms = json::array();
  for (std::int64_t i = 0; i < plan.tuning_seeds; ++i)
    seeds.push_back(plan.first_seed + kTuningSeedOffset + static_cast<std::uint64_t>(i));
  for (const ArmTuning& arm : tuning) {
    json trials = json::array();
    for (const Trial& trial : arm.trials) {
      json accuracy = json::array();
      for (const auto& value : trial.accuracy) accuracy.push_back(or_null(value));
      trials.push_back(
          {{"value", std::stod(trial.value)}, {"accuracy", accuracy}, {"mean", or_null(trial.mean)}});
    }
    arms.push_back({{"name", arm.arm},
                    {"trials", trials},
                    {"chosen", arm.chosen ? json(std::stod(*arm.chosen)) : json(nullptr)},
                    {"at_edge", arm.at_edge}});
  }
  return {{"key", plan.grid->key},
          {"chosen_by", "accuracy on held-out training images"},
          {"held_out", plan.validation},
          {"seeds", seeds},
          {"arms", arms}};
}

}  // namespace

std::string report_json(const ComparisonPlan& plan, const ComparisonResult& result,
                        const std::string& command) {
  json seeds = json::array();
  for (std::int64_t i = 0; i < plan.seeds; ++i)
    seeds.push_back(plan.first_seed + static_cast<std::uint64_t>(i));
  const StageSummary& stage = result.equal_steps;
  const json report = {{"recipe", plan.recipe},
                       {"command", command},
                       {"seeds", seeds},
                       {"dense", "dense"},
                       {"best_control", stage.best_control},
                       {"level", kLevel},
                       {"arms_tested", stage.tested},
                       {"smallest_p", smallest_p(static_cast<std::size_t>(plan.seeds))},
                       {"threads", plan.threads},
                       {"jobs", plan.jobs},
                       {"tuning", tuning_json(plan, result.tuning)},
                       {"arms", arms_json(plan, stage)},
                       {"flops_matched", result.flops ? arms_json(plan, *result.flops) : json::array()},
                       {"time_matched", result.time ? arms_json(plan, *result.time) : json::array()},
                       {"failures", result.failures}};
  return report.dump(1) + "\n";
}

}  // namespace exfusion
