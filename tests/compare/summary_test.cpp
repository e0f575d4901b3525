#include "compare/summary.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "compare/comparison.h"
#include "core/error.h"

namespace exfusion {
namespace {

ArmRuns arm(const std::string& name, const std::vector<double>& accuracies) {
  ArmRuns runs{*std::ranges::find(all_arms(), name, &Arm::name)};
  for (const double accuracy : accuracies) {
    RunResult result;
    result.steps = 100;
    result.accuracy = accuracy;
    runs.runs.push_back(result);
  }
  return runs;
}

// Accuracies around `center` with differences to the others that hardly vary.
std::vector<double> around(double center) {
  std::vector<double> values;
  for (int seed = 0; seed < 10; ++seed)
    values.push_back(center + 0.001 * (seed * 7 % 10) + 0.00001 * (seed % 3));
  return values;
}

const ArmSummary& find(const StageSummary& stage, const std::string& name) {
  return *std::ranges::find(stage.arms, name, [](const ArmSummary& one) { return one.of.arm.name; });
}

TEST(Summary, DifferencesArePairedBySeed) {
  const StageSummary stage = summarise({arm("dense", {0.80, 0.90}), arm("static", {0.81, 0.93})}, true);
  const ArmSummary& summary = find(stage, "static");
  EXPECT_NEAR(summary.mean, 0.87, 1e-12);
  EXPECT_NEAR(summary.difference->mean, 0.02, 1e-12);
  EXPECT_NEAR(summary.difference->deviation, 0.02 / std::sqrt(2.0), 1e-12);
  EXPECT_EQ(summary.steps, 100);
  EXPECT_FALSE(find(stage, "dense").difference);
}

TEST(Summary, AClearGainOverEveryControlIsOne) {
  const StageSummary stage =
      summarise({arm("dense", around(0.80)), arm("ema", around(0.81)), arm("learned", around(0.83))}, true);
  EXPECT_EQ(stage.best_control, "ema");
  EXPECT_EQ(stage.tested, 2u);
  EXPECT_EQ(find(stage, "learned").verdict, "gain");
  EXPECT_EQ(find(stage, "ema").verdict, "differs from dense: higher");
  EXPECT_NEAR(find(stage, "learned").difference->to_best_control->low, 0.02, 1e-3);
}

TEST(Summary, WhatAControlDoesTooIsNoGain) {
  const StageSummary stage =
      summarise({arm("dense", around(0.80)), arm("ema", around(0.83)), arm("learned", around(0.83))}, true);
  EXPECT_EQ(find(stage, "learned").verdict.substr(0, 19), "no difference shown");
}

TEST(Summary, UntunedArmsCannotClaimOne) {
  const StageSummary stage = summarise({arm("dense", around(0.80)), arm("learned", around(0.83))}, false);
  EXPECT_EQ(find(stage, "learned").verdict, "no gain can be claimed: not tuned alike");
}

TEST(Summary, HolmRunsOverTheArmsThatWereTested) {
  const StageSummary stage = summarise(
      {arm("static", around(0.83)), arm("dense", around(0.80)), arm("learned", around(0.81))}, true);
  for (const char* name : {"static", "learned"}) {
    EXPECT_DOUBLE_EQ(find(stage, name).difference->p, 2.0 / 1024.0);
    EXPECT_DOUBLE_EQ(find(stage, name).difference->p_holm, 4.0 / 1024.0);
  }
}

TEST(Summary, AnArmThatLacksARunIsNotCompared) {
  ArmRuns torn = arm("static", around(0.83));
  torn.runs[4] = std::nullopt;
  const StageSummary stage = summarise({arm("dense", around(0.80)), torn}, true);
  EXPECT_EQ(find(stage, "static").verdict, "not compared: 1 of 10 runs are missing");
  EXPECT_FALSE(find(stage, "static").difference);
}

TEST(Summary, WithoutDenseNothingIsCompared) {
  ArmRuns torn = arm("dense", around(0.80));
  torn.runs[4] = std::nullopt;
  const StageSummary stage = summarise({torn, arm("static", around(0.83))}, true);
  EXPECT_EQ(find(stage, "static").verdict, "not compared: runs of dense are missing");
}

TEST(Summary, AnArmIdenticalToDenseIsNamedAndNotCorrectedFor) {
  ArmRuns same{*std::ranges::find(all_arms(), "dense_lr_scaled", &Arm::name)};
  same.identical_to_dense = true;
  const StageSummary stage = summarise({arm("dense", around(0.80)), arm("static", around(0.83)), same}, true);
  EXPECT_EQ(find(stage, "dense_lr_scaled").verdict, "identical to dense, not run");
  EXPECT_EQ(stage.tested, 1u);
}

ArmRuns costing(const std::string& name, std::optional<double> flops, const std::vector<double>& step_times) {
  ArmRuns runs = arm(name, std::vector<double>(step_times.size(), 0.8));
  for (std::size_t i = 0; i < step_times.size(); ++i) {
    runs.runs[i]->flops_per_sample = flops;
    runs.runs[i]->step_time = step_times[i];
  }
  return runs;
}

TEST(Matching, StepsShrinkAsTheFlopsGrow) {
  const ArmRuns dense = costing("dense", 2e9, {0.1, 0.1});
  EXPECT_EQ(steps_at_equal_flops(1000, dense, costing("topk", 3e9, {0.1, 0.1})), 667);
  EXPECT_EQ(steps_at_equal_flops(1000, dense, costing("ema", 2e9, {0.1, 0.1})), 1000);
  EXPECT_EQ(steps_at_equal_flops(1, dense, costing("topk", 9e9, {0.1, 0.1})), 1);
  EXPECT_THROW(steps_at_equal_flops(1000, dense, costing("topk", std::nullopt, {0.1, 0.1})), FormatError);
  EXPECT_THROW(steps_at_equal_flops(1000, dense, costing("topk", 0.0, {0.1, 0.1})), FormatError);
}

TEST(Matching, TimeIsTheMedianRatioOfTheSameSeeds) {
  // The machine was twice as slow for the second seed: of both arms.
  const ArmRuns dense = costing("dense", 1.0, {0.10, 0.20, 0.10});
  EXPECT_EQ(steps_at_equal_time(1000, dense, costing("topk", 1.0, {0.125, 0.25, 0.2})), 800);
}

TEST(Matching, ADifferenceThatTheClockCannotTellIsNone) {
  const ArmRuns dense = costing("dense", 1.0, {0.1, 0.1, 0.1});
  EXPECT_EQ(steps_at_equal_time(1000, dense, costing("ema", 1.0, {0.1009, 0.1009, 0.1009})), 1000);
  EXPECT_EQ(steps_at_equal_time(1000, dense, costing("ema", 1.0, {0.102, 0.102, 0.102})), 980);
  EXPECT_THROW(steps_at_equal_time(1000, dense, costing("ema", 1.0, {0.0, 0.0, 0.0})), FormatError);
}

}  // namespace
}  // namespace exfusion
