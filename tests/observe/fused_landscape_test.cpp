#include "observe/fused_landscape.h"

#include <cmath>

#include "observe/expert_pairs.h"
#include "observe/expert_similarity.h"
#include "observed_model.h"

namespace exfusion {
namespace {

TEST(PriceSlope, IsThePublishedOne) {
  for (const auto& one : analysis_vectors("d2_prices")["cases"]) {
    const bool given = one["inputs"].contains("Gamma");
    if (!given && !one["expected"].contains("Gamma")) continue;
    const at::Tensor gamma = tensor_of(given ? one["inputs"]["Gamma"] : one["expected"]["Gamma"]);
    EXPECT_NEAR(price_slope(values_of(gamma), 3), one["expected"]["gamma_fus"].get<double>(), 1e-11);
  }
}

// Of the loss itself, not of gradients: (L(++) - L(+-) - L(-+) + L(--)) / 4 step^2.
TEST(PriceCurvatures, AreSecondDifferencesOfTheLossInTheWeights) {
  const auto model = small_model();
  const auto sets = small_sets(*model);
  const std::vector<HeldOutBatch> batches = {small_batch(6, 2), small_batch(6, 3), small_batch(6, 4)};
  const auto found = price_curvatures(*model, sets, batches);
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(model->parameters().front().scalar_type(), at::kFloat);
  model->to(at::kDouble);
  const at::NoGradGuard no_grad;
  for (std::size_t s = 0; s < 2; ++s) {
    const FfnTensors w = find_ffns(*model)[s].ffn->parameters_in_order();
    FfnTensors fused;
    for (std::size_t t = 0; t < 4; ++t)
      fused[t] =
          at::tensordot(at::tensor(sets[s].a, at::kDouble), sets[s].experts[t].to(at::kDouble), {0}, {0});
    const auto loss_at = [&](std::int64_t k, double x, std::int64_t j, double y) {
      for (std::size_t t = 0; t < 4; ++t)
        w[t].copy_(fused[t] + x * sets[s].experts[t].select(0, k) + y * sets[s].experts[t].select(0, j));
      double loss = 0.0;
      for (std::size_t b = 0; b < 2; ++b)  // the first two batches
        loss +=
            at::cross_entropy_loss(model->forward(batches[b].images.to(at::kDouble), {}), batches[b].labels)
                .item<double>() /
            2.0;
      return loss;
    };
    constexpr double kStep = 1e-3;
    for (std::int64_t k = 0; k < 3; ++k) {
      for (std::int64_t j = 0; j < 3; ++j) {
        const double expected = (loss_at(k, kStep, j, kStep) - loss_at(k, kStep, j, -kStep) -
                                 loss_at(k, -kStep, j, kStep) + loss_at(k, -kStep, j, -kStep)) /
                                (4.0 * kStep * kStep);
        EXPECT_NEAR(found[s].gamma[static_cast<std::size_t>(3 * k + j)], expected,
                    1e-4 * std::max(1.0, std::abs(expected)));
      }
    }
    for (std::size_t t = 0; t < 4; ++t) w[t].copy_(fused[t]);
    EXPECT_LT(found[s].asymmetry, 1e-3);
    EXPECT_GT(std::abs(found[s].slope), 1e-6);
    EXPECT_NEAR(found[s].slope, (found[s].of_halves[0] + found[s].of_halves[1]) / 2.0, 1e-9);
    EXPECT_NE(found[s].random[0], found[s].random[1]);
  }
}

TEST(FusedLandscape, IsFlatBetweenCopies) {
  const auto model = small_model();
  auto sets = small_sets(*model, 0.0);
  const std::vector<HeldOutBatch> batches = {small_batch(6, 2), small_batch(6, 3)};
  for (const PriceCurvature& one : price_curvatures(*model, sets, batches)) {
    EXPECT_NEAR(one.slope, 0.0, 1e-6);
    EXPECT_EQ(one.random, std::vector<double>(kRandomCurvatures, 0.0));
  }
  for (const LossBarriers& one : loss_barriers(*model, sets, batches, kClasses)) {
    EXPECT_EQ(one.barrier, std::vector<double>(3, 0.0));
    EXPECT_EQ(one.random, std::vector<double>(3, 0.0));
    EXPECT_EQ(one.images, 12.0);
  }
}

TEST(LossBarriers, AreTheLossAboveTheLineBetweenTheEnds) {
  const auto model = small_model();
  const auto sets = small_sets(*model, 0.6);
  const std::vector<HeldOutBatch> batches = {small_batch(9, 2), small_batch(9, 3)};
  const auto found = loss_barriers(*model, sets, batches, kClasses);
  const at::NoGradGuard no_grad;
  double largest = 0.0;
  for (std::size_t s = 0; s < 2; ++s) {
    const FfnTensors w = find_ffns(*model)[s].ffn->parameters_in_order();
    FfnTensors before;
    for (std::size_t t = 0; t < 4; ++t) before[t] = w[t].clone();
    ASSERT_EQ(found[s].pairs, expert_pairs(3));
    for (std::size_t p = 0; p < 3; ++p) {
      const auto [i, j] = found[s].pairs[p];
      std::vector<double> loss;
      for (const double lambda : {0.0, 0.25, 0.5, 0.75, 1.0}) {
        for (std::size_t t = 0; t < 4; ++t)
          w[t].copy_(lambda * sets[s].experts[t].select(0, i) +
                     (1.0 - lambda) * sets[s].experts[t].select(0, j));
        double sum = 0.0;
        for (const HeldOutBatch& batch : batches)
          sum +=
              at::cross_entropy_loss(model->forward(batch.images, {}), batch.labels, {}, at::Reduction::Sum)
                  .item<double>();
        loss.push_back(sum / 18.0);
      }
      double barrier = 0.0;
      for (std::size_t l = 0; l < 5; ++l)
        barrier =
            std::max(barrier, loss[l] - (loss[0] + 0.25 * static_cast<double>(l) * (loss[4] - loss[0])));
      EXPECT_NEAR(found[s].barrier[p], barrier, 1e-5);
      largest = std::max(largest, barrier);
    }
    for (std::size_t t = 0; t < 4; ++t) w[t].copy_(before[t]);
  }
  EXPECT_GT(largest, 1e-3);
}

TEST(ExpertPairs, AreAllOfFiveExpertsAndNeighboursOfMore) {
  EXPECT_EQ(expert_pairs(5).size(), 10u);
  EXPECT_TRUE(expert_pairs(1).empty());
  const auto many = expert_pairs(32);
  EXPECT_EQ(many.size(), kMostPairs);
  EXPECT_EQ(many.back(), (std::pair<std::int64_t, std::int64_t>{9, 10}));
}

TEST(LinearCka, IsThePublishedOne) {
  const auto file = analysis_vectors("d4_cka");
  const auto& inputs = file["cases"][0]["inputs"];
  const at::Tensor x = tensor_of(inputs["X"]), y = tensor_of(inputs["Y"]);
  EXPECT_NEAR(linear_cka(x, y), file["cases"][0]["expected"]["cka"].get<double>(), 1e-12);
  EXPECT_NEAR(linear_cka(x, x), 1.0, 1e-12);
  const double c = std::cos(0.7), s = std::sin(0.7);
  const at::Tensor turn = at::tensor({c, -s, s, c}, at::kDouble).view({2, 2});
  EXPECT_NEAR(linear_cka(x, 2.0 * at::mm(x, turn) + 5.0), 1.0, 1e-12);
  const auto generator = at::detail::createCPUGenerator(3);
  EXPECT_LT(linear_cka(at::randn({300, 5}, generator), at::randn({300, 5}, generator)),
            file["statistical"][0]["pass_if_below"].get<double>());
  EXPECT_TRUE(std::isnan(linear_cka(x, at::ones_like(x))));
}

TEST(AlignedCosine, FindsPermutedUnits) {
  const auto generator = at::detail::createCPUGenerator(3);
  const FfnTensors one = {at::randn({20, 6}, generator), at::randn({20}, generator),
                          at::randn({6, 20}, generator), at::randn({6}, generator)};
  const at::Tensor order = at::randperm(20, generator, at::kLong);
  const FfnTensors permuted = {one[0].index_select(0, order), one[1].index_select(0, order),
                               one[2].index_select(1, order), one[3]};
  EXPECT_NEAR(aligned_cosine(one, permuted).cosine, 1.0, 1e-12);
  EXPECT_LT(aligned_cosine(one, permuted).in_place, 0.5);
  EXPECT_NEAR(aligned_cosine(one, one).cosine, 1.0, 1e-12);
  EXPECT_EQ(aligned_cosine(one, one).in_place, 1.0);
  const FfnTensors other = {at::randn({20, 6}, generator), one[1], at::randn({6, 20}, generator), one[3]};
  const double cosine = aligned_cosine(one, other).cosine;
  EXPECT_GT(cosine, 0.1);  // chance alone, found by matching
  EXPECT_LT(cosine, 0.9);
}

TEST(ExpertSimilarities, OfCopiesAreOneAndTheirOffsetsUndefined) {
  const auto model = small_model();
  const auto sets = small_sets(*model, 0.0);
  for (const ExpertSimilarity& one :
       expert_similarities(*model, sets, {small_batch(9, 2), small_batch(9, 3)})) {
    ASSERT_EQ(one.cka.size(), 3u);
    EXPECT_EQ(one.tokens, 2 * 9 * 4);
    for (std::size_t p = 0; p < 3; ++p) {
      EXPECT_NEAR(one.cka[p], 1.0, 1e-5);
      EXPECT_TRUE(std::isnan(one.cka_offset[p]));
      EXPECT_LT(one.cka_shuffled[p], 0.5);
      EXPECT_NEAR(one.aligned[p].cosine, 1.0, 1e-6);
      EXPECT_LT(one.aligned_random[p].cosine, 0.9);
    }
  }
}

TEST(ExpertSimilarities, SayWhyUnitsAreNotMatched) {
  const auto model = small_model();
  auto sets = small_sets(*model);
  sets.resize(1);
  for (const std::size_t t : {0u, 1u}) {  // the same experts with 2000 units, most of which do nothing
    std::vector<std::int64_t> shape = sets[0].experts[t].sizes().vec();
    shape[1] = 2000 - kHidden;
    sets[0].experts[t] = at::cat({sets[0].experts[t], at::zeros(shape)}, 1);
  }
  sets[0].experts[2] = at::cat({sets[0].experts[2], at::zeros({3, kDim, 2000 - kHidden})}, 2);
  const auto found = expert_similarities(*model, sets, {small_batch(9, 2)});
  EXPECT_TRUE(found[0].aligned.empty());
  EXPECT_NE(found[0].not_aligned.find("2000"), std::string::npos);
  EXPECT_EQ(found[0].cka.size(), 3u);
}

}  // namespace
}  // namespace exfusion
