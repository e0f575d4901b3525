// What a comparison consists of: everything that is decided before its first run, and the runs that follow.
#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "compare/planned_run.h"
#include "optim/schedule.h"

namespace exfusion {

inline constexpr std::uint64_t kTuningSeedOffset = 1000;  // tuning seeds start so far above the comparison's
inline constexpr std::int64_t kMostComparedSeeds = 1000;  // so that the two never meet

// The values of one recipe key among which each arm's own is chosen, as given: {"optim.lr", {"5e-4",
// "1e-3"}}.
struct Grid {
  std::string key;
  std::vector<std::string> values;  // at least two different numbers
};

// "optim.lr=5e-4,1e-3". Throws UsageError.
Grid parse_grid(const std::string& text);

// The words of the command line.
struct ComparisonRequest {
  std::string recipe, arms;
  std::vector<std::string> sets;
  std::int64_t seeds = 0, tuning_seeds = 1, jobs = 1;
  std::optional<std::string> tune;
  bool match_flops = false, match_time = false;
  std::filesystem::path out;
};

struct ComparisonPlan {
  std::string recipe, resolved;  // the file; its text with `sets` and every default
  std::vector<std::string> sets;
  std::vector<Arm> arms;
  std::uint64_t first_seed = 0;  // the recipe's
  std::int64_t seeds = 0;
  std::optional<Grid> grid;
  std::int64_t tuning_seeds = 0, validation = 0;
  std::int64_t steps = 0, threads = 0, jobs = 1;
  double lr = 0.0;                             // the recipe's, of arms that are not tuned
  std::string data, root, precision;           // as the recipe says
  ScheduleConfig schedule;                     // the model's, whose warm-up a matched run rescales
  std::optional<ScheduleConfig> own_schedule;  // fusion.schedule, likewise
  bool match_flops = false, match_time = false;
  // Steps of the arms' matched runs, kept once they are known: {"flops": {"memory": 4600}}.
  std::map<std::string, std::map<std::string, std::int64_t>> matched;
};

// Reads the recipe and checks every arm and every value of the grid on it, before anything runs. Throws
// UsageError, RecipeError. A length given in epochs leaves `steps` 0: see count_steps.
ComparisonPlan make_plan(const ComparisonRequest& request);

// The steps of the recipe's runs; reads the data. Throws DataError.
std::int64_t count_steps(const ComparisonPlan& plan);

// Runs of one stage, each arm's in a row. `chosen`: each arm's value of the grid, where there is one.
std::vector<PlannedRun> tuning_runs(const ComparisonPlan& plan);
std::vector<PlannedRun> equal_steps_runs(const ComparisonPlan& plan,
                                         const std::map<std::string, std::string>& chosen);
// `stage`: flops or time. The runs of the arms whose steps in plan.matched differ from plan.steps.
std::vector<PlannedRun> matched_runs(const ComparisonPlan& plan, const std::string& stage,
                                     const std::map<std::string, std::string>& chosen);

// Throws UsageError or RecipeError, naming the arm, if this machine has not the device of one of these runs,
// or not the memory for plan.jobs runs of its kind at a time.
void check_can_start(const ComparisonPlan& plan, const std::vector<PlannedRun>& runs);

// The --set options of a run of `steps` steps that keep the shape of its schedules: warm-up in proportion.
std::vector<std::string> length_sets(const ComparisonPlan& plan, std::int64_t steps);

}  // namespace exfusion
