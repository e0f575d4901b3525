#include "train/cost.h"

#include "tiny_run.h"

namespace exfusion {
namespace {

// The tiny model by hand: dim 16, hidden 64, 2 blocks, 5 tokens, patches of 4x4 pixels, 4 classes.
constexpr double kFfn = 16 * 64 + 64 + 64 * 16 + 16;
constexpr double kBlock = 4 * 16 + 3 * 16 * 16 + 3 * 16 + 16 * 16 + 16 + kFfn;
constexpr double kModel = 2 * kBlock + 16 * 16 + 16 + 5 * 16 + 16 + 2 * 16 + 4 * 16 + 4;
constexpr double kForward =
    2.0 * (4 * 16 * 16 + 2 * (5 * (4 * 16 * 16 + 2 * 16 * 64) + 2 * 5 * 5 * 16) + 16 * 4);

TrainingCost cost_of(const std::vector<std::string>& sets) {
  const TinyRun run(sets);
  return training_cost(run.config, run.state);
}

TEST(TrainingCost, OfADenseModelIsThatOfItsParametersAndMatrixProducts) {
  const TrainingCost cost = cost_of({});
  EXPECT_EQ(cost.parameters_training, kModel);
  EXPECT_EQ(cost.parameters_deployed, kModel);
  EXPECT_EQ(cost.state_bytes, 16 * kModel);
  EXPECT_EQ(cost.fusion_bytes, 0.0);
  EXPECT_EQ(cost.flops_per_sample, 3 * kForward);
  EXPECT_EQ(cost_of({"train.precision=bf16"}).state_bytes, 18 * kModel);
}

TEST(TrainingCost, FusionAddsExpertsSumsAndPrices) {
  const TrainingCost cost = cost_of({"fusion={experts: 3, weights: static}"});
  EXPECT_EQ(cost.parameters_training, kModel + 2 * 2 * kFfn);
  EXPECT_EQ(cost.parameters_deployed, kModel);
  // W and G of the fused FFNs, and three numbers for each of an expert; a [3] in fp32
  EXPECT_EQ(cost.state_bytes, 16 * (kModel - 2 * kFfn) + 4 * (2 + 9) * 2 * kFfn + 2 * 12);
  EXPECT_EQ(cost.flops_per_sample, 3 * kForward + 2 * 4 * 3 * kFfn / 32);
}

TEST(TrainingCost, SharedMomentsAreThoseOfOneExpert) {
  const TrainingCost cost = cost_of({"fusion={experts: 3, weights: static, state: shared_moments}"});
  EXPECT_EQ(cost.state_bytes, 16 * (kModel - 2 * kFfn) + 4 * (2 + 3 + 2) * 2 * kFfn + 2 * 12);
  EXPECT_EQ(cost.fusion_bytes, 2 * 12);
}

TEST(TrainingCost, ExpertsThatAreNotKeptCostNothing) {
  const TrainingCost cost = cost_of({"fusion={experts: 3, weights: static, materialize: false}"});
  EXPECT_EQ(cost.parameters_training, kModel);
  EXPECT_EQ(cost.state_bytes, 16 * kModel);
  EXPECT_EQ(cost.flops_per_sample, 3 * kForward);
}

TEST(TrainingCost, MemoryKeepsRouterMomentsMemoryAndJacobian) {
  const TrainingCost cost = cost_of({"fusion={experts: 3, weights: memory}"});
  EXPECT_EQ(cost.parameters_training, kModel + 2 * 2 * kFfn + 2 * 3 * 16);
  // per FFN: a [3] fp32, m [3] double, router and two moments [3, 16], Jacobian [3, 3, 16]
  EXPECT_EQ(cost.fusion_bytes, 2 * (12 + 24 + 3 * 4 * 48 + 4 * 144));
  EXPECT_EQ(cost.flops_per_sample, 3 * kForward + 2 * 4 * 3 * kFfn / 32 + 2 * 5 * (2 * 3 * 16 + 12 * 16));
}

TEST(TrainingCost, TextNamesTheFigures) {
  const std::string text = cost_text(cost_of({"fusion={experts: 3, weights: memory}"}));
  for (const char* part : {"MFLOP per training sample", "in training", "deployed", "2376 bytes"})
    EXPECT_NE(text.find(part), std::string::npos) << text;
}

}  // namespace
}  // namespace exfusion
