#include "compare/comparison.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/duration.h"
#include "core/error.h"
#include "core/log.h"
#include "core/median.h"
#include "train/interrupt.h"

namespace exfusion {
namespace {

constexpr int kRefused = 2;  // the exit code of bad input

// What is done and known so far.
struct Conduct {
  const ComparisonPlan& plan;
  const Launch& launch;
  RunResults results;
  std::vector<std::string> failures;
  std::size_t total = 0, ended = 0;
  double seconds = 0.0;  // of the runs timed in this process
  std::size_t timed = 0;
};

std::string progress_text(const Conduct& conduct, const PlannedRun& run, const RunResult& result,
                          double seconds) {
  std::string what = "identical to dense, not run";
  if (!result.identical_to_dense && run.value.empty() == false && run.name.starts_with("tuning/"))
    what = fmt::format("{:.2f} % of the held-out images", 100.0 * result.validation_accuracy.value_or(0.0));
  else if (!result.identical_to_dense)
    what = fmt::format("{:.2f} %", 100.0 * result.accuracy);
  const double left = static_cast<double>(conduct.total - conduct.ended) * conduct.seconds /
                      static_cast<double>(conduct.timed) / static_cast<double>(conduct.plan.jobs);
  return fmt::format("[{}/{}] {}: {} ({}{})", conduct.ended, conduct.total, run.title, what,
                     clock_text(seconds),
                     conduct.ended < conduct.total ? "; about " + clock_text(left) + " left" : "");
}

void finish(Conduct& conduct, const PlannedRun& run, const JobEnd& how) {
  conduct.ended += 1;
  conduct.seconds += how.seconds;
  conduct.timed += 1;
  try {
    const bool is_identical = how.exit_code == kRefused && !run.scaled_by.empty() &&
                              how.last_line.find("identical to dense") != std::string::npos;
    if (how.exit_code != 0 && !is_identical) throw Failure(how.last_line);
    const RunResult result =
        is_identical ? keep_identical(conduct.launch, run) : keep_result(conduct.launch, run);
    conduct.results[run.name] = result;
    log_info("{}", progress_text(conduct, run, result, how.seconds));
  } catch (const Error& error) {
    const std::string line =
        fmt::format("{} failed with exit code {}: {}", run.title, how.exit_code, error.what());
    log_warning("[{}/{}] {} (all of it in {}.log)", conduct.ended, conduct.total, line,
                (conduct.launch.runs / run.name).string());
    conduct.failures.push_back(line);
  }
}

// Takes over what is finished and runs the rest.
void run_stage(Conduct& conduct, const std::string& title, const std::vector<PlannedRun>& runs) {
  std::vector<Job> jobs;
  std::vector<PlannedRun> to_run;
  std::map<std::string, const PlannedRun*> by_name;
  for (const PlannedRun& run : runs) {
    if (const auto kept = kept_result(conduct.launch, run)) {
      conduct.results[run.name] = *kept;
      conduct.ended += 1;
    } else {
      jobs.push_back(run_job(conduct.launch, run));
      to_run.push_back(run);
      by_name[run.name] = &run;
    }
  }
  if (runs.empty()) return;
  check_can_start(conduct.plan, to_run);
  log_info("{}: {} runs, {} of them finished before", title, runs.size(), runs.size() - jobs.size());
  const int signal =
      run_jobs(jobs, static_cast<int>(conduct.plan.jobs), [&](const Job& job, const JobEnd& how) {
        const bool stopped = how.exit_code == 128 + interrupt_signal() && interrupt_signal() != 0;
        if (!stopped) finish(conduct, *by_name.at(job.name), how);
      });
  if (signal != 0)
    throw Interrupted(
        fmt::format("stopped by signal {}, all runs are saved; the same command goes on", signal), signal);
}

std::vector<ArmRuns> collect(const Conduct& conduct, const std::vector<PlannedRun>& runs,
                             const std::vector<ArmTuning>& tuning) {
  std::vector<ArmRuns> arms;
  for (const Arm& arm : conduct.plan.arms) {
    ArmRuns& collected = arms.emplace_back(ArmRuns{arm});
    collected.identical_to_dense = std::ranges::any_of(
        tuning, [&](const ArmTuning& one) { return one.arm == arm.name && one.identical_to_dense; });
    for (const PlannedRun& run : runs) {
      if (run.arm != arm.name) continue;
      collected.value = run.value;
      const auto found = conduct.results.find(run.name);
      collected.runs.push_back(found == conduct.results.end() ? std::nullopt : std::optional(found->second));
      if (collected.runs.back() && collected.runs.back()->identical_to_dense)
        collected.identical_to_dense = true;
    }
  }
  return arms;
}

std::map<std::string, std::string> chosen_values(const std::vector<ArmTuning>& tuning) {
  std::map<std::string, std::string> chosen;
  for (const ArmTuning& arm : tuning) {
    if (arm.chosen && !arm.identical_to_dense) chosen[arm.arm] = *arm.chosen;
  }
  return chosen;
}

bool whole(const ArmRuns& arm) {
  return !arm.identical_to_dense && !arm.runs.empty() &&
         std::ranges::all_of(arm.runs, [](const auto& run) { return run.has_value(); });
}

// One more stage with runs of other lengths. Steps that were decided before stay: their runs may exist.
StageSummary run_matched(Conduct& conduct, ComparisonPlan& plan, const ComparisonFolder& folder,
                         const std::string& stage, const std::vector<ArmRuns>& equal_steps,
                         const std::map<std::string, std::string>& chosen, bool tuned_alike) {
  const auto dense = std::ranges::find(equal_steps, "dense", [](const ArmRuns& arm) { return arm.arm.name; });
  for (const ArmRuns& arm : equal_steps) {
    if (!whole(arm) || !whole(*dense) || plan.matched[stage].contains(arm.arm.name)) continue;
    plan.matched[stage][arm.arm.name] = stage == "flops" ? steps_at_equal_flops(plan.steps, *dense, arm)
                                                         : steps_at_equal_time(plan.steps, *dense, arm);
  }
  folder.write_plan(plan);
  const std::vector<PlannedRun> runs = matched_runs(plan, stage, chosen);
  conduct.total += runs.size();
  run_stage(conduct, "equal " + stage, runs);
  std::vector<ArmRuns> arms = collect(conduct, runs, {});
  for (std::size_t i = 0; i < arms.size(); ++i) {
    if (!arms[i].runs.empty()) continue;
    arms[i] = equal_steps[i];
    arms[i].equal_steps_run = whole(arms[i]);
  }
  return summarise(arms, tuned_alike);
}

}  // namespace

ComparisonResult run_comparison(ComparisonPlan& plan, const ComparisonFolder& folder, const Launch& launch,
                                const std::function<void(const ComparisonResult&)>& report) {
  Conduct conduct{plan, launch};
  ComparisonResult result;
  const std::vector<PlannedRun> trials = tuning_runs(plan);
  conduct.total = trials.size() + plan.arms.size() * static_cast<std::size_t>(plan.seeds);
  run_stage(conduct, "tuning", trials);
  result.tuning = choose_values(plan, trials, conduct.results);
  const bool tuned_alike = plan.grid && std::ranges::all_of(result.tuning, [](const ArmTuning& arm) {
                             return arm.complete() || arm.identical_to_dense;
                           });
  const std::map<std::string, std::string> chosen = chosen_values(result.tuning);
  for (const ArmTuning& arm : result.tuning) {
    if (chosen.contains(arm.arm))
      log_info("tuning: {} takes {}={}{}", arm.arm, plan.grid->key, *arm.chosen,
               arm.at_edge ? ", at the edge of the grid" : "");
  }

  const std::vector<PlannedRun> runs = equal_steps_runs(plan, chosen);
  conduct.total = trials.size() + runs.size();
  run_stage(conduct, "equal steps", runs);
  const std::vector<ArmRuns> equal_steps = collect(conduct, runs, result.tuning);
  result.equal_steps = summarise(equal_steps, tuned_alike);
  const auto reported = [&] {
    result.failures = conduct.failures;
    report(result);
  };
  reported();
  if (plan.match_flops) {
    result.flops = run_matched(conduct, plan, folder, "flops", equal_steps, chosen, tuned_alike);
    reported();
  }
  if (plan.match_time) {
    result.time = run_matched(conduct, plan, folder, "time", equal_steps, chosen, tuned_alike);
    reported();
  }
  return result;
}

namespace {

std::int64_t scaled(std::int64_t steps, double ratio, const ArmRuns& arm) {
  if (!(ratio > 1e-3 && ratio < 1e3))  // also of numbers that are none
    throw FormatError(
        fmt::format("{}: costs {} times what dense costs; no run can match that", arm.arm.name, 1.0 / ratio));
  return std::max<std::int64_t>(1, std::llround(static_cast<double>(steps) * ratio));
}

}  // namespace

std::int64_t steps_at_equal_flops(std::int64_t steps, const ArmRuns& dense, const ArmRuns& arm) {
  const auto flops = [](const ArmRuns& one) {
    const auto known = one.runs.front()->flops_per_sample;
    if (!known)
      throw FormatError(one.arm.name + ": its runs recorded no flops_per_sample, so none can be matched");
    return *known;
  };
  return scaled(steps, flops(dense) / flops(arm), arm);
}

std::int64_t steps_at_equal_time(std::int64_t steps, const ArmRuns& dense, const ArmRuns& arm) {
  std::vector<double> ratios;
  for (std::size_t i = 0; i < arm.runs.size(); ++i)
    ratios.push_back(dense.runs[i]->step_time / arm.runs[i]->step_time);
  const double ratio = median(ratios);
  return std::abs(ratio - 1.0) <= kSameTime ? steps : scaled(steps, ratio, arm);
}

}  // namespace exfusion
