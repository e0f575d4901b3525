#include <fmt/format.h>

#include "compare/report.h"
#include "compare/verdict.h"
#include "core/median.h"

namespace exfusion {
namespace {

std::string points(const Interval& interval) {
  return fmt::format("[{:+.2f}, {:+.2f}]", 100.0 * interval.low, 100.0 * interval.high);
}

// 205130 as "205.1 k".
std::string amount(const std::optional<double>& value) {
  if (!value) return "";
  double scaled = *value;
  for (const char* unit : {"", " k", " M", " G"}) {
    if (scaled < 1000.0) return fmt::format("{:.{}f}{}", scaled, *unit ? 1 : 0, unit);
    scaled /= 1000.0;
  }
  return fmt::format("{:.1f} T", scaled);
}

std::string trained_value(const ComparisonPlan& plan, const ArmRuns& arm) {
  if (plan.grid) return arm.value;
  return fmt::format("{}", plan.lr);
}

std::string accuracy_table(const ComparisonPlan& plan, const StageSummary& stage) {
  std::string text = fmt::format(
      "| arm | {} | steps | accuracy, % | minus dense, points | bootstrap | p | p (Holm) | verdict |\n"
      "|---|---|---|---|---|---|---|---|---|\n",
      plan.grid ? plan.grid->key : "optim.lr");
  for (const ArmSummary& arm : stage.arms) {
    const std::string name = arm.of.arm.name + (arm.of.arm.control ? " (control)" : "");
    text += fmt::format("| {} | {} | {} | ", name, trained_value(plan, arm.of),
                        arm.steps > 0
                            ? fmt::format("{}{}", arm.steps, arm.of.equal_steps_run ? " (the run above)" : "")
                            : "");
    text += arm.complete ? fmt::format("{:.2f} +- {:.2f} | ", 100.0 * arm.mean, 100.0 * arm.deviation) : "| ";
    if (arm.difference) {
      const Difference& d = *arm.difference;
      text += fmt::format("{:+.2f} {} | {} | {:.2g} | {:.2g} | ", 100.0 * d.mean, points(d.interval),
                          points(d.bootstrap), d.p, d.p_holm);
    } else {
      text += "| | | | ";
    }
    text += arm.verdict + " |\n";
  }
  return text;
}

std::optional<double> first_known(const ArmRuns& arm, std::optional<double> RunResult::*field) {
  for (const auto& run : arm.runs) {
    if (run && (*run).*field) return (*run).*field;
  }
  return std::nullopt;
}

std::string cost_table(const StageSummary& stage) {
  std::string text =
      "| arm | parameters deployed | in training | FLOPs per sample | peak memory, bytes | median step, ms "
      "|\n"
      "|---|---|---|---|---|---|\n";
  for (const ArmSummary& arm : stage.arms) {
    if (arm.of.identical_to_dense) continue;
    std::vector<double> times;
    for (const auto& run : arm.of.runs) {
      if (run) times.push_back(1e3 * run->step_time);
    }
    text += fmt::format("| {} | {} | {} | {} | {} | {} |\n", arm.of.arm.name,
                        amount(first_known(arm.of, &RunResult::parameters_deployed)),
                        amount(first_known(arm.of, &RunResult::parameters_training)),
                        amount(first_known(arm.of, &RunResult::flops_per_sample)),
                        amount(first_known(arm.of, &RunResult::peak_memory)),
                        times.empty() ? "" : fmt::format("{:.2f}", median(times)));
  }
  return text;
}

std::string tuning_table(const ComparisonPlan& plan, const std::vector<ArmTuning>& tuning) {
  std::string text = fmt::format("| arm | {} | chosen |\n|---|", fmt::join(plan.grid->values, " | "));
  for (std::size_t i = 0; i <= plan.grid->values.size(); ++i) text += "---|";
  text += "\n";
  for (const ArmTuning& arm : tuning) {
    text += "| " + arm.arm + " |";
    for (const Trial& trial : arm.trials)
      text += trial.mean ? fmt::format(" {:.2f} |", 100.0 * *trial.mean) : " |";
    text +=
        fmt::format(" {}{} |\n", arm.identical_to_dense ? "identical to dense" : arm.chosen.value_or("none"),
                    arm.at_edge ? ", at the edge of the grid" : "");
  }
  return text;
}

std::string rule_text(const ComparisonPlan& plan, const StageSummary& stage) {
  const double level = corrected_level(stage.tested);
  return fmt::format(
      "{} arms are tested against dense, so each at the level {} / {} = {:.4f}; with {} seeds no p can be "
      "below "
      "{:.2g}. A gain needs a\n"
      "lower bound above 0 of the {:.2f} % paired interval of the arm minus the best control, here {}, and "
      "all arms "
      "tuned over the same\ngrid with as many trials{}.\n",
      stage.tested, kLevel, stage.tested, level, plan.seeds, smallest_p(static_cast<std::size_t>(plan.seeds)),
      100.0 * (1.0 - level), stage.best_control.empty() ? "none" : stage.best_control,
      plan.grid ? "" : "; these were not tuned");
}

std::string gain_table(const StageSummary& stage) {
  std::string text = fmt::format(
      "| arm | minus dense, corrected interval | minus {}, the best control | seeds for 0.3 points |\n"
      "|---|---|---|---|\n",
      stage.best_control);
  for (const ArmSummary& arm : stage.arms) {
    if (!arm.difference) continue;
    const Difference& d = *arm.difference;
    text += fmt::format("| {} | {} | {} | {} |\n", arm.of.arm.name, points(d.corrected),
                        d.to_best_control ? points(*d.to_best_control) : "",
                        d.seeds_needed ? std::to_string(*d.seeds_needed) : "more than can be run");
  }
  return text;
}

}  // namespace

std::string report_markdown(const ComparisonPlan& plan, const ComparisonResult& result,
                            const std::string& command) {
  const StageSummary& stage = result.equal_steps;
  std::string text = fmt::format("# Comparison of {}\n\n    {}\n\n", plan.recipe, command);
  text += fmt::format(
      "Test accuracy, mean and standard deviation over the seeds {} to {}; differences are paired by seed, "
      "with 95 % "
      "t intervals.\n![accuracies and differences](comparison.svg)\n\n",
      plan.first_seed, plan.first_seed + static_cast<std::uint64_t>(plan.seeds) - 1);
  for (const std::string& failure : result.failures) text += "**Failed:** " + failure + "\n\n";
  text += "## Equal steps\n\n" + accuracy_table(plan, stage);
  if (stage.tested > 0) text += "\n" + rule_text(plan, stage) + "\n" + gain_table(stage);
  if (result.flops) text += "\n## Equal training FLOPs\n\n" + accuracy_table(plan, *result.flops);
  if (result.time) text += "\n## Equal training time\n\n" + accuracy_table(plan, *result.time);
  text += "\n## Cost\n\n" + cost_table(stage);
  if (plan.grid) {
    text += fmt::format(
        "\n## Tuning\n\nAccuracy in % on {} held-out training images, mean over {} seed{} from {} on (not "
        "those "
        "compared above).\n\n",
        plan.validation, plan.tuning_seeds, plan.tuning_seeds == 1 ? "" : "s",
        plan.first_seed + kTuningSeedOffset);
    text += tuning_table(plan, result.tuning);
  }
  return text;
}

}  // namespace exfusion
