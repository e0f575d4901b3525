#include "compare/tuning.h"

#include <gtest/gtest.h>

#include <cmath>

namespace exfusion {
namespace {

// One arm, values 1, 2, 4 and two seeds; accuracies in the order of the runs, NAN where the run failed.
ArmTuning choose(const std::vector<double>& accuracies) {
  ComparisonPlan plan;
  plan.arms = parse_arms("dense");
  plan.grid = parse_grid("optim.lr=2,1,4");
  plan.tuning_seeds = 2;
  const std::vector<PlannedRun> runs = tuning_runs(plan);
  RunResults results;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    if (!std::isnan(accuracies[i])) results[runs[i].name].validation_accuracy = accuracies[i];
  }
  return choose_values(plan, runs, results)[0];
}

TEST(Tuning, TakesTheBestMeanOverTheSeeds) {
  const ArmTuning tuning = choose({0.70, 0.72, 0.90, 0.50, 0.60, 0.60});
  EXPECT_EQ(tuning.chosen, "2");
  EXPECT_DOUBLE_EQ(tuning.trials[1].mean.value(), 0.70);
  EXPECT_TRUE(tuning.complete());
}

TEST(Tuning, KnowsTheEdgeOfTheGridWhateverItsOrder) {
  EXPECT_FALSE(choose({0.9, 0.9, 0.1, 0.1, 0.1, 0.1}).at_edge);  // 2 of {2, 1, 4}
  EXPECT_TRUE(choose({0.1, 0.1, 0.9, 0.9, 0.1, 0.1}).at_edge);
  EXPECT_TRUE(choose({0.1, 0.1, 0.1, 0.1, 0.9, 0.9}).at_edge);
}

TEST(Tuning, TheFirstOfEqualsIsTaken) {
  EXPECT_EQ(choose({0.5, 0.5, 0.5, 0.5, 0.5, 0.5}).chosen, "2");
}

TEST(Tuning, AValueWithAFailedTrialIsOutAndTheArmWasNotTunedAlike) {
  const ArmTuning tuning = choose({0.9, NAN, 0.1, 0.1, 0.2, 0.2});
  EXPECT_EQ(tuning.chosen, "4");
  EXPECT_FALSE(tuning.complete());
  EXPECT_EQ(choose({NAN, NAN, NAN, NAN, NAN, NAN}).chosen, std::nullopt);
}

TEST(Tuning, WithoutAGridThereIsNone) {
  ComparisonPlan plan;
  plan.arms = parse_arms("dense");
  EXPECT_TRUE(choose_values(plan, {}, {}).empty());
}

}  // namespace
}  // namespace exfusion
