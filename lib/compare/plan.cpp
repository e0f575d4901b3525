#include "compare/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>
#include <sstream>
#include <thread>
#include <utility>

#include "core/error.h"
#include "core/recipe.h"
#include "data/loader.h"
#include "train/device.h"
#include "train/memory.h"
#include "train/run_config.h"

namespace exfusion {
namespace {

RunConfig parse_with(const std::string& recipe, const std::vector<std::string>& sets, std::string* resolved) {
  Recipe read = Recipe::load(recipe, sets);
  const RunConfig config = parse_run(read);
  if (resolved) *resolved = read.resolved();
  return config;
}

// Each arm at each value, so that what cannot run is known before hours have passed.
void check_arms(const ComparisonPlan& plan) {
  for (const Arm& arm : plan.arms) {
    if (arm.scored == Scored::uniform_soup && plan.data == "synthetic")
      throw UsageError("the arm " + arm.name +
                       " is evaluated as an exported model, which does not know a run's synthetic images");
    if (arm.scaled_by_fused_run) continue;  // incomplete without the run that scales it
    for (const std::string& value : plan.grid ? plan.grid->values : std::vector<std::string>{""}) {
      std::vector<std::string> sets = plan.sets;
      sets.insert(sets.end(), arm.sets.begin(), arm.sets.end());
      if (plan.grid) sets.push_back(plan.grid->key + "=" + value);
      try {
        parse_with(plan.recipe, sets, nullptr);
      } catch (const RecipeError& error) {
        const std::string all = error.what();
        throw RecipeError(fmt::format("the arm {}: {}", arm.name, all.substr(0, all.find('\n'))));
      }
    }
  }
}

std::int64_t default_threads(std::int64_t jobs) {
  const auto cores = static_cast<std::int64_t>(std::max(1u, std::thread::hardware_concurrency()));
  return std::max<std::int64_t>(1, cores / jobs);
}

std::string seed_name(std::uint64_t seed) {
  return "seed-" + std::to_string(seed);
}

// What all runs of an arm with a seed share. Later sets win: the user's over the defaults, the arm's over
// both.
PlannedRun make_run(const ComparisonPlan& plan, const Arm& arm, const std::string& stage, std::uint64_t seed,
                    const std::string& value) {
  PlannedRun run;
  run.arm = arm.name;
  run.value = value;
  run.seed = seed;
  run.scored = arm.scored;
  run.title = fmt::format("{}{}{} seed {}", stage == "steps" ? "" : stage + ": ", arm.name,
                          stage == "tuning" ? fmt::format(" {}={}", plan.grid->key, value) : "", seed);
  const std::string inside = stage == "tuning" ? fmt::format("{}={}/", plan.grid->key, value) : "";
  run.name = fmt::format("{}/{}/{}{}", stage, arm.name, inside, seed_name(seed));
  run.sets = {"checkpoint.keep=1"};
  run.sets.insert(run.sets.end(), plan.sets.begin(), plan.sets.end());
  run.sets.insert(run.sets.end(), arm.sets.begin(), arm.sets.end());
  if (plan.grid) run.sets.push_back(plan.grid->key + "=" + value);
  run.sets.push_back("seed=" + std::to_string(seed));
  run.sets.push_back("train.threads=" + std::to_string(plan.threads));
  if (arm.scored == Scored::uniform_soup) {
    run.sets.push_back(
        fmt::format("checkpoint.every_steps={}", std::max<std::int64_t>(1, plan.steps / kSoupSpacing)));
    run.sets.push_back(fmt::format("checkpoint.keep={}", kSoupCheckpoints));
  }
  if (arm.scaled_by_fused_run) {
    run.scaled_by = fmt::format("{}/{}/{}{}", stage == "tuning" ? stage : "steps", scale_source(plan.arms),
                                inside, seed_name(seed));
  }
  return run;
}

// Runs that wait for another one's result come after it.
void put_scaled_last(std::vector<PlannedRun>& runs) {
  std::ranges::stable_partition(runs, [](const PlannedRun& run) { return run.scaled_by.empty(); });
}

std::string tuned_value(const std::map<std::string, std::string>& chosen, const Arm& arm) {
  const auto found = chosen.find(arm.name);
  return found == chosen.end() ? "" : found->second;
}

void append_warmup(std::vector<std::string>& sets, const std::string& section, const ScheduleConfig& schedule,
                   double ratio) {
  if (schedule.warmup_steps >= 0) {
    const auto steps = std::llround(static_cast<double>(schedule.warmup_steps) * ratio);
    sets.push_back(fmt::format("{}.warmup_steps={}", section, steps));
  } else if (schedule.warmup_epochs > 0.0) {
    sets.push_back(fmt::format("{}.warmup_epochs={}", section, schedule.warmup_epochs * ratio));
  }
}

}  // namespace

Grid parse_grid(const std::string& text) {
  const std::size_t equals = text.find('=');
  if (equals == 0 || equals == std::string::npos)
    throw UsageError("--tune " + text + ": write KEY=VALUE,VALUE,…, for example optim.lr=5e-4,1e-3,2e-3");
  Grid grid{text.substr(0, equals), {}};
  if (grid.key == "seed") throw UsageError("--tune seed: the seeds are the comparison's");
  if (grid.key == "data.validation")
    throw UsageError(
        "--tune data.validation: these images choose the values, and cannot be chosen themselves");
  std::set<double> seen;
  std::istringstream words(text.substr(equals + 1));
  for (std::string word; std::getline(words, word, ',');) {
    double value = 0.0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
    if (word.empty() || error != std::errc() || end != word.data() + word.size() || !std::isfinite(value))
      throw UsageError(fmt::format("--tune {}: '{}' is no number", text, word));
    if (!seen.insert(value).second) throw UsageError(fmt::format("--tune {}: {} is there twice", text, word));
    grid.values.push_back(word);
  }
  if (grid.values.size() < 2) throw UsageError("--tune " + text + ": a choice needs two values or more");
  return grid;
}

ComparisonPlan make_plan(const ComparisonRequest& request) {
  ComparisonPlan plan;
  plan.recipe = request.recipe;
  plan.sets = request.sets;
  plan.arms = parse_arms(request.arms);
  plan.seeds = request.seeds;
  if (request.tune) plan.grid = parse_grid(*request.tune);
  plan.tuning_seeds = plan.grid ? request.tuning_seeds : 0;
  plan.jobs = request.jobs;
  plan.match_flops = request.match_flops;
  plan.match_time = request.match_time;
  const RunConfig config = parse_with(request.recipe, request.sets, &plan.resolved);
  if (config.control.name != "none")
    throw UsageError("control: " + config.control.name +
                     ": a comparison chooses controls by its arms; leave it out");
  if (!config.fusion)
    throw UsageError(request.recipe + ": a comparison needs a fused recipe, this one has no fusion section");
  if (plan.grid && config.data.validation == 0)
    throw UsageError(
        "--tune chooses by held-out training images, never by the test set: give --set data.validation=5000, "
        "or "
        "so");
  plan.first_seed = config.seed;
  plan.validation = config.data.validation;
  plan.threads = config.train.threads > 0 ? config.train.threads : default_threads(plan.jobs);
  plan.lr = config.optim.lr;
  plan.data = config.data.name;
  plan.root = config.data.root;
  plan.precision = config.train.precision;
  plan.schedule = config.optim.schedule;
  plan.own_schedule = config.fusion->schedule;
  plan.steps = config.train.steps;
  check_arms(plan);
  return plan;
}

std::int64_t count_steps(const ComparisonPlan& plan) {
  const RunConfig config = parse_with(plan.recipe, plan.sets, nullptr);
  const Datasets data = make_datasets(config.data, config.seed, config.model.image_shape());
  return total_steps(config.train, steps_per_epoch(*data.train, config.train.global_batch));
}

std::vector<PlannedRun> tuning_runs(const ComparisonPlan& plan) {
  std::vector<PlannedRun> runs;
  if (!plan.grid) return runs;
  for (const Arm& arm : plan.arms) {
    for (const std::string& value : plan.grid->values) {
      for (std::int64_t i = 0; i < plan.tuning_seeds; ++i) {
        const std::uint64_t seed = plan.first_seed + kTuningSeedOffset + static_cast<std::uint64_t>(i);
        runs.push_back(make_run(plan, arm, "tuning", seed, value));
        // Held-out accuracy is recorded for models and moving averages; a soup is tuned by its last model.
        if (arm.scored == Scored::uniform_soup) runs.back().scored = Scored::model;
      }
    }
  }
  put_scaled_last(runs);
  return runs;
}

std::vector<PlannedRun> equal_steps_runs(const ComparisonPlan& plan,
                                         const std::map<std::string, std::string>& chosen) {
  std::vector<PlannedRun> runs;
  for (std::int64_t i = 0; i < plan.seeds; ++i) {  // seed by seed: what is there so far is paired
    for (const Arm& arm : plan.arms) {
      if (plan.grid && !chosen.contains(arm.name)) continue;
      runs.push_back(make_run(plan, arm, "steps", plan.first_seed + static_cast<std::uint64_t>(i),
                              tuned_value(chosen, arm)));
    }
  }
  put_scaled_last(runs);
  return runs;
}

std::vector<PlannedRun> matched_runs(const ComparisonPlan& plan, const std::string& stage,
                                     const std::map<std::string, std::string>& chosen) {
  std::vector<PlannedRun> runs;
  const auto& steps = plan.matched.at(stage);
  for (std::int64_t i = 0; i < plan.seeds; ++i) {
    for (const Arm& arm : plan.arms) {
      const auto found = steps.find(arm.name);
      if (found == steps.end() || found->second == plan.steps) continue;
      PlannedRun run = make_run(plan, arm, stage, plan.first_seed + static_cast<std::uint64_t>(i),
                                tuned_value(chosen, arm));
      const std::vector<std::string> length = length_sets(plan, found->second);
      run.sets.insert(run.sets.end(), length.begin(), length.end());
      runs.push_back(std::move(run));
    }
  }
  return runs;
}

void check_can_start(const ComparisonPlan& plan, const std::vector<PlannedRun>& runs) {
  const auto at_a_time = std::min<std::size_t>(static_cast<std::size_t>(plan.jobs), runs.size());
  std::set<std::pair<std::string, std::string>> checked;  // seeds and lengths change neither
  for (const PlannedRun& run : runs) {
    if (!run.scaled_by.empty() || !checked.insert({run.arm, run.value}).second) continue;
    const RunConfig config = parse_with(plan.recipe, run.sets, nullptr);
    training_device(config.train.device);
    try {
      check_memory(config, 1, static_cast<int>(at_a_time));
    } catch (const RecipeError& error) {
      throw RecipeError(fmt::format("the arm {}: {}{}", run.arm, error.what(),
                                    at_a_time > 1 ? "; or by fewer --jobs" : ""));
    }
  }
}

std::vector<std::string> length_sets(const ComparisonPlan& plan, std::int64_t steps) {
  const double ratio = static_cast<double>(steps) / static_cast<double>(plan.steps);
  std::vector<std::string> sets = {fmt::format("train.steps={}", steps)};
  append_warmup(sets, "optim.schedule", plan.schedule, ratio);
  if (plan.own_schedule) append_warmup(sets, "fusion.schedule", *plan.own_schedule, ratio);
  return sets;
}

}  // namespace exfusion
