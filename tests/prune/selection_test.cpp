#include "prune/selection.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/error.h"
#include "prune/weight_scores.h"

namespace exfusion {
namespace {

TEST(KeptNumber, IsTheShareRoundedUp) {
  EXPECT_EQ(kept_number(0.5, 8, 2), 4);
  EXPECT_EQ(kept_number(0.5, 5, 1), 3);
  EXPECT_EQ(kept_number(0.51, 8, 2), 5);
  EXPECT_EQ(kept_number(1.0, 64, 8), 64);
  for (const std::int64_t tenths : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}) {
    EXPECT_EQ(kept_number(static_cast<double>(tenths) / 10.0, 10, 1), tenths);
    EXPECT_EQ(kept_number(static_cast<double>(tenths) * 0.1, 60, 1), 6 * tenths);
  }
}

TEST(KeptNumber, RefusesWhatLeavesTooFewAndWhatIsNoShare) {
  EXPECT_EQ(kept_number(0.25, 8, 2), 2);
  EXPECT_THROW(kept_number(0.125, 8, 2), UsageError);
  for (const double keep : {0.0, -0.5, 1.0001, std::nan(""), std::numeric_limits<double>::infinity()})
    EXPECT_THROW(kept_number(keep, 8, 2), UsageError) << keep;
}

TEST(KeptExperts, AreTheHighestAndOfEqualOnesTheHigherNumbers) {
  const KeptExperts kept = kept_experts({{1, {5, 0, 3, 0, 4}}, {7, {2, 2, 2, 2, 2}}}, 3);
  EXPECT_EQ(kept.at(1), (std::vector<std::int64_t>{0, 2, 4}));
  EXPECT_EQ(kept.at(7), (std::vector<std::int64_t>{2, 3, 4}));
}

TEST(ExpectScoresOf, RefusesOtherLayersAndOtherNumbersOfExperts) {
  const ScoresByLayer scores = {{0, {1, 2}}, {2, {1, 2}}};
  EXPECT_NO_THROW(expect_scores_of(scores, {0, 2}, 2, "t.h5"));
  EXPECT_THROW(expect_scores_of(scores, {0, 1}, 2, "t.h5"), FormatError);
  EXPECT_THROW(expect_scores_of(scores, {0}, 2, "t.h5"), FormatError);
  EXPECT_THROW(expect_scores_of(scores, {0, 2}, 3, "t.h5"), FormatError);
}

double scored(const char* score, const std::vector<at::Tensor>& weights) {
  WeightSums sums;
  for (const at::Tensor& one : weights) sums.add(one);
  return weight_score(score, sums, "expert 0");
}

// Mean magnitude over root mean square is 1 for equal magnitudes, 1/sqrt(n) for one number among n - 1
// zeros, sqrt(2/pi) for normal numbers; and does not change with scale.
TEST(WeightScore, AimerIsTheMeanMagnitudeOverTheRootMeanSquare) {
  const at::Tensor equal = at::tensor({0.5, -0.5, 0.5, -0.5}).view({2, 2});
  EXPECT_NEAR(scored("aimer", {equal, -equal}), -1.0, 1e-12);
  const at::Tensor one = at::tensor({0.0, 0.0, -3.0, 0.0, 0.0}), zeros = at::zeros({4});
  EXPECT_NEAR(scored("aimer", {one, zeros}), -1.0 / 3.0, 1e-7);
  at::manual_seed(0);
  const at::Tensor normal = at::randn({300, 300});
  EXPECT_NEAR(scored("aimer", {normal}), -std::sqrt(2.0 / M_PI), 0.005);
  EXPECT_NEAR(scored("aimer", {normal * 8.0}), scored("aimer", {normal}), 1e-12);
  EXPECT_EQ(scored("aimer", {zeros}), -std::numeric_limits<double>::infinity());
}

TEST(WeightScore, NormsAreOfAllMatricesTogetherInAnyFloatingPointType) {
  EXPECT_DOUBLE_EQ(scored("weight_norm", {at::tensor({3.0f, 0.0f}), at::tensor({-4.0}).to(at::kBFloat16)}),
                   5.0);
  EXPECT_DOUBLE_EQ(scored("router_norm", {at::tensor({3.0f, 4.0f})}), 5.0);
  EXPECT_THROW(scored("weight_norm", {at::tensor({std::nanf(""), 1.0f})}), FormatError);
}

}  // namespace
}  // namespace exfusion
