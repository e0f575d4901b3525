#include "compare/verdict.h"

#include <gtest/gtest.h>

namespace exfusion {
namespace {

// A candidate among four arms with 12 seeds, whose intervals hold 0.
VerdictFacts undecided() {
  return {false, true, 12, 4, {-0.001, 0.002}, {-0.002, 0.001}, 0.003};
}

TEST(Verdict, GainWhenTheBoundOverTheBestControlIsAboveZero) {
  VerdictFacts facts = undecided();
  facts.to_dense = {0.002, 0.004};
  facts.to_best_control = {0.0001, 0.003};
  EXPECT_EQ(verdict(facts), "gain");
}

TEST(Verdict, NoGainWhenOnlyDenseIsBeaten) {
  VerdictFacts facts = undecided();
  facts.to_dense = {0.002, 0.004};
  const std::string expected =
      "no difference shown to the best control (higher than dense), 10 seeds would be needed";
  EXPECT_EQ(verdict(facts).substr(0, expected.size()), expected);
  facts.to_best_control = {0.0, 0.003};  // touching is not above
  EXPECT_EQ(verdict(facts).substr(0, expected.size()), expected);
}

TEST(Verdict, NoGainWithoutTuningAlike) {
  VerdictFacts facts = undecided();
  facts.to_best_control = {0.0001, 0.003};
  facts.tuned_alike = false;
  EXPECT_EQ(verdict(facts), "no gain can be claimed: not tuned alike");
}

TEST(Verdict, LossWhenTheUpperBoundIsBelowZero) {
  VerdictFacts facts = undecided();
  facts.to_dense = {-0.004, -0.0001};
  facts.tuned_alike = false;  // a loss needs no tuning to be said
  EXPECT_EQ(verdict(facts), "loss");
  facts.to_dense.high = 0.0;
  EXPECT_NE(verdict(facts), "loss");
}

TEST(Verdict, CannotBeDecidedWhenTheSmallestPIsAboveTheCorrectedLevel) {
  VerdictFacts facts = undecided();
  facts.to_dense = facts.to_best_control = {0.1, 0.2};
  facts.seeds = 7;  // 2 / 2^7 = 0.0156 > 0.05 / 4
  EXPECT_EQ(verdict(facts), "cannot be decided with 7 seeds");
  facts.seeds = 8;  // 0.0078
  EXPECT_EQ(verdict(facts), "gain");
  facts.arms = 7;  // 0.05 / 7 = 0.0071
  EXPECT_EQ(verdict(facts), "cannot be decided with 8 seeds");
}

TEST(Verdict, NothingShownSaysHowManySeedsWould) {
  VerdictFacts facts = undecided();
  EXPECT_EQ(verdict(facts), "no difference shown, 10 seeds would be needed for 0.3 points");  // Cohen's d = 1
  facts.deviation = 0.006;                                                                    // d = 0.5
  EXPECT_EQ(verdict(facts), "no difference shown, 34 seeds would be needed for 0.3 points");
  facts.deviation = 30.0;
  EXPECT_EQ(verdict(facts), "no difference shown, more than 100000 seeds would be needed for 0.3 points");
}

TEST(Verdict, ControlsOnlyDiffer) {
  VerdictFacts facts = undecided();
  facts.control = true;
  facts.to_best_control = {0.1, 0.2};  // not looked at
  EXPECT_EQ(verdict(facts).substr(0, 19), "no difference shown");
  facts.to_dense = {0.0001, 0.003};
  EXPECT_EQ(verdict(facts), "differs from dense: higher");
  facts.to_dense = {-0.003, -0.0001};
  EXPECT_EQ(verdict(facts), "differs from dense: lower");
  facts.seeds = 3;
  EXPECT_EQ(verdict(facts), "cannot be decided with 3 seeds");
}

TEST(Verdict, TheLevelIsDividedByTheArms) {
  EXPECT_DOUBLE_EQ(corrected_level(1), 0.05);
  EXPECT_DOUBLE_EQ(corrected_level(15), 0.05 / 15.0);
}

}  // namespace
}  // namespace exfusion
