#include "analysis/causal.h"

#include <gtest/gtest.h>

#include <cmath>

namespace exfusion::analysis {
namespace {

constexpr std::size_t kBatches = 12, kClasses = 4;

// 5 images of each class in each batch.
HeldOutImages held_out() {
  HeldOutImages made{kBatches, kClasses};
  made.images.assign(kBatches * kClasses, 5.0);
  return made;
}

// Mean change by class, and noise of +-`noise` from batch to batch.
ImageSums change(std::vector<double> by_class, double noise = 0.0) {
  ImageSums made;
  for (std::size_t b = 0; b < kBatches; ++b) {
    for (std::size_t c = 0; c < kClasses; ++c) {
      made.loss.push_back(5.0 * (by_class[c] + (b % 4 < 2 ? noise : -noise)));
      made.correct.push_back(-5.0 * by_class[c]);
    }
  }
  return made;
}

TEST(Causal, MeansAreOverImages) {
  HeldOutImages images = held_out();
  ImageSums one = change({0.1, 0.2, 0.3, 0.4});
  images.images[0] = 15.0;  // ten more images of class 0 in batch 0, whose losses rose by 1 each
  one.loss[0] += 10.0;
  const MeanChange found = mean_change(images, one);
  EXPECT_NEAR(found.loss, (240 * 0.25 + 10.0) / 250.0, 1e-12);
  EXPECT_NEAR(found.loss_by_class[0], (60 * 0.1 + 10.0) / 70.0, 1e-12);
  EXPECT_NEAR(found.loss_by_class[3], 0.4, 1e-12);
  EXPECT_NEAR(found.accuracy, -60.0 / 250.0, 1e-12);
  EXPECT_LT(found.loss_ci.low, found.loss);
  EXPECT_GT(found.loss_ci.high, found.loss);
}

TEST(Causal, AClassWithoutImagesHasNoMean) {
  HeldOutImages images = held_out();
  for (std::size_t b = 0; b < kBatches; ++b) images.images[b * kClasses + 2] = 0.0;
  ImageSums one = change({1, 1, 0, 1});
  const MeanChange found = mean_change(images, one);
  EXPECT_TRUE(std::isnan(found.loss_by_class[2]));
  EXPECT_NEAR(found.loss, 1.0, 1e-12);
}

TEST(Causal, BraessCountsExpertsThatTheModelIsBetterWithout) {
  const std::vector<ImageSums> experts = {change({-1, -1, -1, -1}, 0.1),
                                          change({1, 1, 1, 1}, 0.1),
                                          change({0, 0, 0, 0}),
                                          change({-.01, -.01, -.01, -.01}, 5.0),
                                          {} /* cannot be left out */};
  const BraessShare found = braess_share(held_out(), experts);
  EXPECT_DOUBLE_EQ(found.share, 0.5);  // of four: the first and the noisy one
  EXPECT_DOUBLE_EQ(found.share_ci.low, 0.25);
  EXPECT_DOUBLE_EQ(found.share_ci.high, 0.5);
  EXPECT_EQ(found.certain, 1u);
}

TEST(Causal, FewBatchesGiveNoInterval) {
  HeldOutImages few{3, 1};
  few.images.assign(3, 1.0);
  const BraessShare found = braess_share(few, {{{-1, -1, -1}, {0, 0, 0}}});
  EXPECT_DOUBLE_EQ(found.share, 1.0);
  EXPECT_EQ(found.share_ci.reason, "fewer than 4 batches");
  EXPECT_EQ(found.certain, 0u);
}

// Class c comes to expert c most.
std::vector<double> own_class() {
  std::vector<double> preference(kClasses * kClasses, 1.0);
  for (std::size_t c = 0; c < kClasses; ++c) preference[c * kClasses + c] = 10.0;
  return preference;
}

TEST(Causal, SpecialistsAreFoundByTheirInteraction) {
  std::vector<ImageSums> experts;
  for (std::size_t k = 0; k < kClasses; ++k) {
    std::vector<double> hurt(kClasses, 0.1);
    hurt[k] = 0.5;
    experts.push_back(change(hurt));
  }
  const InteractionContrast found = interaction_contrast(held_out(), experts, own_class(), 0);
  EXPECT_NEAR(found.contrast.value, 0.4, 1e-12);
  EXPECT_NEAR(found.p.value, 1.0 / 24.0, 0.02);  // one order of four is as good
  const InteractionContrast both =
      mean_contrast({found, interaction_contrast(held_out(), experts, own_class(), 1)});
  EXPECT_NEAR(both.contrast.value, 0.4, 1e-12);
  EXPECT_LT(both.p.value, 0.01);
}

TEST(Causal, HardClassesAndStrongExpertsAreNoInteraction) {
  std::vector<ImageSums> experts;
  for (std::size_t k = 0; k < kClasses; ++k) {
    const double strength = 1.0 + static_cast<double>(k);
    experts.push_back(change({strength * 3.0, strength, strength, strength}));
  }
  std::vector<double> preference = own_class();
  EXPECT_GT(interaction_contrast(held_out(), experts, preference, 0).p.value, 0.3);
}

TEST(Causal, ExpertsWithoutPreferencesHaveNoContrast) {
  const std::vector<ImageSums> experts(3, change({1, 2, 3, 4}));
  const auto found = interaction_contrast(held_out(), experts, std::vector<double>(3 * kClasses, 2.0), 0);
  EXPECT_EQ(found.contrast.reason, "fewer than two experts prefer some classes to others");
}

TEST(Causal, SpearmanIsScipys) {
  // scipy.stats.spearmanr
  EXPECT_NEAR(spearman(std::vector<double>{1, 2, 3, 4, 5}, std::vector<double>{5, 6, 7, 8, 7}),
              0.8207826816681233, 1e-12);
  EXPECT_NEAR(
      spearman(std::vector<double>{0.3, 0.1, 0.4, 0.1, 0.5, 0.9}, std::vector<double>{2, 7, 1, 8, 2, 8}),
      -0.1343433226559697, 1e-12);
  EXPECT_DOUBLE_EQ(spearman(std::vector<double>{1, 2, 3}, std::vector<double>{9, 4, 1}), -1.0);
  EXPECT_TRUE(std::isnan(spearman(std::vector<double>{1, 1, 1}, std::vector<double>{9, 4, 1})));
}

TEST(Causal, AScoreIsRankedAgainstTheLossesOfTheOtherHalf) {
  std::vector<ImageSums> experts;
  for (const double hurt : {0.3, 0.1, 0.4, 0.2}) experts.push_back(change({hurt, hurt, hurt, hurt}, 0.01));
  // Odd batches tell nothing else: even ones are turned around.
  for (ImageSums& one : experts) {
    for (std::size_t b = 0; b < kBatches; b += 2)
      for (std::size_t c = 0; c < kClasses; ++c) one.loss[b * kClasses + c] *= -1.0;
  }
  bool evens_only = true;
  const auto score = [&](const std::vector<double>& times) {
    for (std::size_t b = 1; b < times.size(); b += 2) evens_only = evens_only && times[b] == 0.0;
    return std::vector<std::vector<double>>{{3, 1, 4, 2}, {1, 1, 1, 1}};
  };
  const auto both = rank_correlations(held_out(), experts, score);
  const RankCorrelation &found = both.at(0), &flat = both.at(1);
  EXPECT_DOUBLE_EQ(found.rho.value, 1.0);
  EXPECT_TRUE(evens_only);
  EXPECT_DOUBLE_EQ(found.ci.low, 1.0);
  EXPECT_FALSE(flat.rho.defined());
  EXPECT_DOUBLE_EQ(mean_correlation({found, flat}, kBatches).rho.value, 1.0);
  EXPECT_FALSE(mean_correlation({flat}, kBatches).rho.defined());
}

}  // namespace
}  // namespace exfusion::analysis
