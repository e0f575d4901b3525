#include <nlohmann/json.hpp>

#include "compare/report.h"
#include "compare/verdict.h"

namespace exfusion {
namespace {

using Json = nlohmann::ordered_json;

Json ordered_or_null(const std::optional<double>& value) {
  return value ? Json(*value) : Json(nullptr);
}

Json interval_json(const Interval& interval) {
  return Json::array({interval.low, interval.high});
}

// The mean over the runs that are there of what each recorded.
Json mean_of(const ArmRuns& arm, std::optional<double> (*recorded)(const RunResult&)) {
  std::vector<double> known;
  for (const auto& run : arm.runs) {
    if (run && recorded(*run)) known.push_back(*recorded(*run));
  }
  return known.empty() ? Json(nullptr) : Json(mean(known));
}

void add_difference(Json& to, const ArmSummary& arm) {
  const Difference empty;
  const auto& difference = arm.difference;
  const auto put = [&](const char* key, const Json& value) { to[key] = difference ? value : Json(nullptr); };
  const Difference& known = difference ? *difference : empty;
  put("difference", known.mean);
  put("difference_std", known.deviation);
  put("difference_ci", interval_json(known.interval));
  put("bootstrap_ci", interval_json(known.bootstrap));
  put("corrected_ci", interval_json(known.corrected));
  put("best_control_ci", known.to_best_control ? interval_json(*known.to_best_control) : Json(nullptr));
  put("p", known.p);
  put("p_holm", known.p_holm);
  put("seeds_needed", known.seeds_needed ? Json(*known.seeds_needed) : Json(nullptr));
}

Json arm_json(const ComparisonPlan& plan, const ArmSummary& arm) {
  const ArmRuns& of = arm.of;
  const bool lr_tuned = plan.grid && plan.grid->key == "optim.lr" && !of.value.empty();
  Json accuracy = Json::array();
  for (const auto& run : of.runs)
    accuracy.push_back(run && !of.identical_to_dense ? Json(run->accuracy) : Json(nullptr));
  Json out = {{"name", of.arm.name},
              {"control", of.arm.control},
              {"identical_to_dense", of.identical_to_dense},
              {"equal_steps_run", of.equal_steps_run},
              {"steps", arm.steps},
              {"lr", lr_tuned ? std::stod(of.value) : plan.lr},
              {"accuracy", accuracy},
              {"mean", arm.complete ? Json(arm.mean) : Json(nullptr)},
              {"std", arm.complete ? Json(arm.deviation) : Json(nullptr)}};
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

Json arms_json(const ComparisonPlan& plan, const StageSummary& stage) {
  Json arms = Json::array();
  for (const ArmSummary& arm : stage.arms) arms.push_back(arm_json(plan, arm));
  return arms;
}

Json tuning_json(const ComparisonPlan& plan, const std::vector<ArmTuning>& tuning) {
  if (!plan.grid) return nullptr;
  Json seeds = Json::array(), arms = Json::array();
  for (std::int64_t i = 0; i < plan.tuning_seeds; ++i)
    seeds.push_back(plan.first_seed + kTuningSeedOffset + static_cast<std::uint64_t>(i));
  for (const ArmTuning& arm : tuning) {
    Json trials = Json::array();
    for (const Trial& trial : arm.trials) {
      Json accuracy = Json::array();
      for (const auto& value : trial.accuracy) accuracy.push_back(ordered_or_null(value));
      trials.push_back(
          {{"value", std::stod(trial.value)}, {"accuracy", accuracy}, {"mean", ordered_or_null(trial.mean)}});
    }
    arms.push_back({{"name", arm.arm},
                    {"trials", trials},
                    {"chosen", arm.chosen ? Json(std::stod(*arm.chosen)) : Json(nullptr)},
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
  Json seeds = Json::array();
  for (std::int64_t i = 0; i < plan.seeds; ++i)
    seeds.push_back(plan.first_seed + static_cast<std::uint64_t>(i));
  const StageSummary& stage = result.equal_steps;
  const Json report = {{"recipe", plan.recipe},
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
                       {"flops_matched", result.flops ? arms_json(plan, *result.flops) : Json::array()},
                       {"time_matched", result.time ? arms_json(plan, *result.time) : Json::array()},
                       {"failures", result.failures}};
  return report.dump(1) + "\n";
}

}  // namespace exfusion
