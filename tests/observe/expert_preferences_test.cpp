#include "observe/expert_preferences.h"

#include <cmath>

#include "observe/virtual_scores.h"
#include "observed_model.h"

namespace exfusion {
namespace {

at::Tensor rows(std::initializer_list<std::vector<double>> values) {
  std::vector<at::Tensor> found;
  for (const std::vector<double>& row : values) found.push_back(at::tensor(row, at::kDouble));
  return at::stack(found);
}

// Two experts differ by twice their standard deviation, whatever their scale.
TEST(SoftPreferences, AreASoftmaxOfScoresInStandardDeviations) {
  const at::Tensor found = soft_preferences(rows({{5.0, 3.0}, {-1e-6, 1e-6}, {2.0, 2.0}}));
  const double most = 1.0 / (1.0 + std::exp(-2.0));
  EXPECT_LT(largest_difference(found, rows({{most, 1.0 - most}, {1.0 - most, most}, {0.5, 0.5}})), 1e-12);
}

TEST(TokenScores, PerUnitOfTheirSizeMayPreferAnother) {
  const TokenScores found = with_sizes(rows({{6.0, 4.0, 5.0}}), at::tensor({3.0, 1.0, 0.0}, at::kDouble));
  EXPECT_EQ(values_of(found.per_unit), (std::vector<double>{2.0, 4.0, 0.0}));
  EXPECT_EQ(values_of(preferred_experts(found.scores)), std::vector<double>{0});
  EXPECT_EQ(values_of(preferred_experts(found.per_unit)), std::vector<double>{1});
}

TEST(PreferenceSums, CountByBatchExpertAndClass) {
  PreferenceSums sums(2, 2, 3, 0);
  const at::Tensor sizes = at::tensor({4.0, 1.0}, at::kDouble);
  sums.add(with_sizes(rows({{3.0, 1.0}, {1.0, 1.0}}), sizes), at::tensor({0, 1}, at::kLong),
           at::tensor({2, 0}, at::kLong));
  sums.add(with_sizes(rows({{-1.0, 1.0}}), sizes), at::tensor({0}, at::kLong), at::tensor({2}, at::kLong));
  const VirtualScores found = sums.finish();
  EXPECT_EQ(found.tokens, (std::vector<double>{2, 1}));
  EXPECT_EQ(found.ties, (std::vector<double>{1, 0}));
  EXPECT_EQ(found.load, (std::vector<double>{1, 0, 0, 1}));
  EXPECT_EQ(found.unit_load, (std::vector<double>{0, 2, 0, 1}));
  EXPECT_EQ(found.table, (std::vector<double>{0, 0, 1, 0, 0, 1}));
  EXPECT_EQ(found.score, (std::vector<double>{4, 2, -1, 1}));
  const double most = 1.0 / (1.0 + std::exp(-2.0));
  EXPECT_NEAR(found.soft_load[0], most + 0.5, 1e-12);
  EXPECT_NEAR(found.soft_load[3], most, 1e-12);
  EXPECT_EQ(found.class_score[2], 1.0);  // expert 0, class 2: (3 - 1) / 2
}

// The same directions as "random" ones: every null is the measurement.
TEST(CompareWithRandom, AveragesTheLoadsOfTheRepetitions) {
  VirtualScores found(1, 2, 2);
  const at::Tensor label = at::tensor({0, 0, 1, 1}, at::kLong), sizes = at::ones({2}, at::kDouble);
  const TokenScores apart = with_sizes(rows({{2, 0}, {2, 0}, {0, 2}, {0, 2}}), sizes),
                    mixed = with_sizes(rows({{2, 0}, {0, 2}, {2, 0}, {2, 0}}), sizes);
  compare_with_random(apart, {apart, mixed}, label, found);
  EXPECT_NEAR(found.random.measured.value, 1.0, 1e-12);
  EXPECT_EQ(found.random_load, (std::vector<double>{0.625, 0.375}));
  EXPECT_EQ(found.random_unit_load, found.random_load);
  EXPECT_LT(found.random.mean.value, 0.9);
}

TEST(VirtualScores, OfEqualExpertsAreAsSoftAsCanBe) {
  const auto model = small_model();
  const auto sets = small_sets(*model, 0.0);
  VirtualScoreSums sums(sets[0], 1, kClasses);
  const FfnTokens tokens = observe_tokens(*model, small_batch(8, 2))[0].parts[0];
  sums.add(tokens);
  const VirtualScores found = sums.finish();
  for (const double one : found.soft_load) EXPECT_NEAR(one, static_cast<double>(tokens.size()) / 3.0, 1e-9);
  EXPECT_EQ(found.unit_load, std::vector<double>(3, 0.0));
}

// Random directions of unequal sizes: the largest is preferred most, per unit none is.
TEST(RandomLoads, FollowTheSizesOfTheOffsets) {
  const auto model = small_model();
  auto sets = small_sets(*model);
  FusedSet& set = sets[1];
  set.a = {0.0, 0.0, 1.0};
  for (at::Tensor& tensor : set.experts) {
    const at::Tensor centre = tensor.select(0, 2).clone();
    tensor = at::stack({centre + 3.0 * (tensor.select(0, 0) - centre), tensor.select(0, 1), centre});
  }
  VirtualScoreSums sums(set, 4, kClasses);
  for (std::uint64_t b = 0; b < 4; ++b) sums.add(observe_tokens(*model, small_batch(16, b))[1].parts[0]);
  const VirtualScores found = sums.finish();
  EXPECT_GT(found.random_load[0], found.random_load[1] + 0.1);
  EXPECT_NEAR(found.random_unit_load[0], found.random_unit_load[1], 0.1);
}

// dL/da_k by differences of the loss of W + step W_k, in double precision.
TEST(HeldOutPrices, AreTheDerivativesOfTheMeanLossByTheWeights) {
  const auto model = small_model();
  model->to(at::kDouble);
  const auto sets = small_sets(*model);
  const std::vector<HeldOutBatch> batches = {small_batch(5, 2, at::kDouble), small_batch(3, 4, at::kDouble)};
  VirtualScoreSums sums(sets[0], 2, kClasses);
  for (const HeldOutBatch& batch : batches) sums.add(observe_tokens(*model, batch)[0].parts[0]);
  const HeldOutPrices found = sums.prices();
  const at::NoGradGuard no_grad;
  const FfnTensors w = find_ffns(*model)[0].ffn->parameters_in_order();
  const auto loss_at = [&](std::int64_t k, double step) {
    for (std::size_t t = 0; t < w.size(); ++t) w[t].add_(sets[0].experts[t].select(0, k), step);
    double loss = 0.0;
    for (const HeldOutBatch& batch : batches)
      loss += at::cross_entropy_loss(model->forward(batch.images, {}), batch.labels, {}, at::Reduction::Sum)
                  .item<double>();
    for (std::size_t t = 0; t < w.size(); ++t) w[t].sub_(sets[0].experts[t].select(0, k), step);
    return loss / 8.0;
  };
  for (std::int64_t k = 0; k < 3; ++k) {
    const double slope = (loss_at(k, 1e-5) - loss_at(k, -1e-5)) / 2e-5;
    const auto at = static_cast<std::size_t>(k);
    EXPECT_NEAR(found.price[at], slope, 1e-7);
    EXPECT_NEAR(found.saliency[at], -sets[0].a[at] * slope, 1e-7);
    EXPECT_GT(std::abs(slope), 1e-3);
    EXPECT_GT(found.price_error[at], 0.0);
  }
  EXPECT_EQ(found.images, (std::vector<double>{5, 3}));
}

TEST(HeldOutPrices, AreUndefinedWithoutImages) {
  const HeldOutPrices none(2, 3);
  EXPECT_TRUE(std::isnan(none.price[0]) && std::isnan(none.price_error[2]) && std::isnan(none.saliency[1]));
}

}  // namespace
}  // namespace exfusion
