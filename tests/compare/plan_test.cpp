#include "compare/plan.h"

#include <ATen/Context.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "core/error.h"
#include "support/test_folder.h"

namespace exfusion {
namespace {

constexpr const char* kRecipe =
    "seed: 7\n"
    "model: {arch: vit, dim: 8, depth: 1, heads: 1, patch: 7, image: 28, channels: 1, classes: 10}\n"
    "fusion: {experts: 2}\n"
    "data: {name: synthetic, train_samples: 64, validation: 16}\n"
    "train: {steps: 200, global_batch: 16, threads: 1}\n"
    "optim: {lr: 0.01, schedule: {name: cosine, warmup_steps: 20}}\n";

class Plan : public testing::Test {
 protected:
  Plan() {
    write_bytes(folder_ / "recipe.yaml", kRecipe);
    request_.recipe = (folder_ / "recipe.yaml").string();
    request_.arms = "dense,learned";
    request_.seeds = 3;
  }
  std::string refusal() const {
    try {
      make_plan(request_);
    } catch (const BadInput& error) {
      return error.what();
    }
    return "";
  }
  static bool has(const PlannedRun& run, const std::string& set) {
    return std::ranges::count(run.sets, set) > 0;
  }

  TestFolder folder_;
  ComparisonRequest request_;
};

TEST_F(Plan, EveryArmRunsWithTheSameSeedsFromTheRecipesOn) {
  const ComparisonPlan plan = make_plan(request_);
  const std::vector<PlannedRun> runs = equal_steps_runs(plan, {});
  ASSERT_EQ(runs.size(), 6u);
  std::set<std::string> names;
  for (const PlannedRun& run : runs) names.insert(run.name);
  EXPECT_EQ(names,
            (std::set<std::string>{"steps/dense/seed-7", "steps/dense/seed-8", "steps/dense/seed-9",
                                   "steps/learned/seed-7", "steps/learned/seed-8", "steps/learned/seed-9"}));
  EXPECT_TRUE(has(runs[1], "seed=7") && has(runs[1], "fusion.weights=learned"));
}

TEST_F(Plan, ArmsOverrideTheUserWhoOverridesTheDefaults) {
  request_.sets = {"checkpoint.keep=4", "fusion.weights=static"};
  const PlannedRun run = equal_steps_runs(make_plan(request_), {})[1];
  const auto place = [&](const std::string& set) {
    return std::ranges::find(run.sets, set) - run.sets.begin();
  };
  EXPECT_LT(place("checkpoint.keep=1"), place("checkpoint.keep=4"));
  EXPECT_LT(place("fusion.weights=static"), place("fusion.weights=learned"));
  EXPECT_LT(place("fusion.weights=learned"), static_cast<std::ptrdiff_t>(run.sets.size()));
}

TEST_F(Plan, TuningUsesOtherSeedsAndEveryValueForEveryArm) {
  request_.tune = "optim.lr=5e-3,1e-2,2e-2";
  request_.tuning_seeds = 2;
  const ComparisonPlan plan = make_plan(request_);
  const std::vector<PlannedRun> trials = tuning_runs(plan);
  EXPECT_EQ(trials.size(), 2u * 3u * 2u);
  for (const PlannedRun& trial : trials) {
    EXPECT_GE(trial.seed, 7u + kTuningSeedOffset);
    EXPECT_TRUE(has(trial, "optim.lr=" + trial.value)) << trial.name;
  }
  EXPECT_EQ(trials[0].name, "tuning/dense/optim.lr=5e-3/seed-1007");
  const std::vector<PlannedRun> runs = equal_steps_runs(plan, {{"dense", "1e-2"}, {"learned", "2e-2"}});
  EXPECT_TRUE(has(runs[0], "optim.lr=1e-2"));
  EXPECT_TRUE(has(runs[1], "optim.lr=2e-2"));
}

TEST_F(Plan, AnArmWithoutAChosenValueIsNotRun) {
  request_.tune = "optim.lr=5e-3,1e-2";
  const std::vector<PlannedRun> runs = equal_steps_runs(make_plan(request_), {{"dense", "1e-2"}});
  EXPECT_TRUE(std::ranges::all_of(runs, [](const PlannedRun& run) { return run.arm == "dense"; }));
}

TEST_F(Plan, MatchedRunsKeepTheShapeOfTheSchedule) {
  ComparisonPlan plan = make_plan(request_);
  EXPECT_EQ(length_sets(plan, 150),
            (std::vector<std::string>{"train.steps=150", "optim.schedule.warmup_steps=15"}));
  plan.schedule.warmup_steps = -1;
  plan.schedule.warmup_epochs = 0.5;
  plan.own_schedule = ScheduleConfig{.warmup_steps = 8};
  EXPECT_EQ(length_sets(plan, 300),
            (std::vector<std::string>{"train.steps=300", "optim.schedule.warmup_epochs=0.75",
                                      "fusion.schedule.warmup_steps=12"}));
}

TEST_F(Plan, OnlyArmsOfAnotherLengthGetMatchedRuns) {
  ComparisonPlan plan = make_plan(request_);
  plan.matched["time"] = {{"dense", 200}, {"learned", 190}};
  const std::vector<PlannedRun> runs = matched_runs(plan, "time", {});
  ASSERT_EQ(runs.size(), 3u);
  EXPECT_EQ(runs[0].name, "time/learned/seed-7");
  EXPECT_TRUE(has(runs[0], "train.steps=190"));
}

TEST_F(Plan, TheSoupsRunKeepsTheCheckpointsThatAreAveraged) {
  request_.arms = "dense,learned";
  ComparisonPlan plan = make_plan(request_);
  plan.arms.push_back(*std::ranges::find(all_arms(), "average", &Arm::name));
  const PlannedRun run = equal_steps_runs(plan, {})[2];
  EXPECT_TRUE(has(run, "checkpoint.every_steps=4") && has(run, "checkpoint.keep=5"));
  EXPECT_EQ(run.sets.back(), "checkpoint.keep=5");
}

TEST_F(Plan, ScaledDenseComesLastAndWaitsForTheRunOfItsSeed) {
  ComparisonPlan plan = make_plan(request_);
  plan.arms.insert(plan.arms.begin(), *std::ranges::find(all_arms(), "dense_lr_scaled", &Arm::name));
  std::vector<PlannedRun> runs = equal_steps_runs(plan, {});
  EXPECT_EQ(runs[8].arm, "dense_lr_scaled");
  EXPECT_EQ(runs[8].scaled_by, "steps/learned/seed-9");
  plan.grid = parse_grid("optim.lr=1e-3,1e-2");
  plan.tuning_seeds = 1;
  runs = tuning_runs(plan);
  EXPECT_EQ(runs.back().name, "tuning/dense_lr_scaled/optim.lr=1e-2/seed-1007");
  EXPECT_EQ(runs.back().scaled_by, "tuning/learned/optim.lr=1e-2/seed-1007");
}

TEST_F(Plan, LengthsInEpochsAreCountedOnTheData) {
  request_.sets = {"train.epochs=2.5"};
  write_bytes(folder_ / "recipe.yaml",
              std::string(kRecipe).replace(std::string(kRecipe).find("steps: 200, "), 12, ""));
  const ComparisonPlan plan = make_plan(request_);
  EXPECT_EQ(plan.steps, 0);
  EXPECT_EQ(count_steps(plan), 8);  // 48 images that are not held out, 3 steps an epoch, 7.5 rounded
}

TEST_F(Plan, ARecipeWithoutFusionIsRefused) {
  request_.sets = {"fusion=none"};
  EXPECT_NE(refusal().find("no fusion section"), std::string::npos);
}

TEST_F(Plan, ASoupOfSyntheticImagesIsRefused) {
  request_.arms = "dense,average";
  EXPECT_NE(refusal().find("the arm average"), std::string::npos);
}

TEST_F(Plan, TuningWithoutHeldOutImagesIsRefused) {
  request_.tune = "optim.lr=5e-3,1e-2";
  request_.sets = {"data.validation=0"};
  EXPECT_NE(refusal().find("never by the test set"), std::string::npos);
}

TEST_F(Plan, AValueThatNoArmCanTakeIsRefusedBeforeAnythingRuns) {
  request_.tune = "optim.lr=1e-2,-1";
  EXPECT_NE(refusal().find("the arm dense"), std::string::npos);
  EXPECT_NE(refusal().find("optim.lr"), std::string::npos);
  request_.tune = "optim.rate=1e-2,2e-2";
  EXPECT_NE(refusal().find("unknown key 'optim.rate'"), std::string::npos);
}

TEST(Grid, ReadsItsValuesAsGiven) {
  const Grid grid = parse_grid("optim.lr=5e-4,1e-3,0.002");
  EXPECT_EQ(grid.key, "optim.lr");
  EXPECT_EQ(grid.values, (std::vector<std::string>{"5e-4", "1e-3", "0.002"}));
}

TEST(Grid, WhatIsNoListOfDifferentNumbersIsRefused) {
  for (const char* text :
       {"optim.lr", "=1,2", "optim.lr=", "optim.lr=1e-3", "optim.lr=1e-3,fast", "optim.lr=1e-3,,2",
        "optim.lr=1e-3,0.001", "optim.lr=1,inf", "optim.lr=1,nan", "optim.lr=1,2x", "seed=1,2"})
    EXPECT_THROW(parse_grid(text), UsageError) << text;
}

TEST_F(Plan, RunsThatThisMachineCannotHoldAreNamedBeforeTheFirst) {
  request_.sets = {"model.dim=8192", "model.depth=24"};
  request_.jobs = 8;
  const ComparisonPlan plan = make_plan(request_);
  try {
    check_can_start(plan, equal_steps_runs(plan, {}));
    ADD_FAILURE() << "nothing was said";
  } catch (const RecipeError& error) {
    const std::string said = error.what();
    EXPECT_EQ(said.find("the arm dense: the run's state needs "), 0u) << said;
    EXPECT_NE(said.find(" for each of 6 processes here"), std::string::npos) << said;
    EXPECT_TRUE(said.ends_with("; or by fewer --jobs")) << said;
  }
  EXPECT_NO_THROW(check_can_start(plan, {}));
}

TEST_F(Plan, RunsForADeviceThatIsNotHereAreRefusedBeforeTheFirst) {
  if (at::hasCUDA()) GTEST_SKIP() << "there is a CUDA device";
  request_.sets = {"train.device=cuda"};
  const ComparisonPlan plan = make_plan(request_);
  EXPECT_THROW(check_can_start(plan, equal_steps_runs(plan, {})), UsageError);
}

}  // namespace
}  // namespace exfusion
