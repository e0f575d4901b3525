#include "fusion/weight_noise.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <optional>
#include <set>

namespace exfusion {
namespace {

FusionConfig noise(double expert_dropout, double dirichlet) {
  FusionConfig config;
  config.expert_dropout = expert_dropout;
  config.dirichlet = dirichlet;
  return config;
}

const std::vector<float> kWeights = {0.4f, 0.1f, 0.3f, 0.2f};

std::optional<std::vector<float>> noisy_weights(const FusionConfig& config, std::vector<float> a,
                                                std::uint64_t seed, std::int64_t step, std::int64_t ffn) {
  const std::vector<float> before = a;
  if (add_weight_noise(config, a, seed, step, ffn)) return a;
  EXPECT_EQ(a, before);
  return std::nullopt;
}

TEST(WeightNoise, IsAbsentWhereItIsOff) {
  EXPECT_FALSE(noisy_weights(noise(0.0, 0.0), kWeights, 1, 5, 0).has_value());
}

TEST(WeightNoise, DropoutComesInItsFractionOfStepsAndKeepsTheSum) {
  int noisy_steps = 0;
  std::set<std::vector<bool>> subsets;
  for (int step = 0; step < 2000; ++step) {
    const auto noisy = noisy_weights(noise(0.3, 0.0), kWeights, 1, step, 0);
    if (!noisy) continue;
    ++noisy_steps;
    EXPECT_NEAR(std::accumulate(noisy->begin(), noisy->end(), 0.0f), 1.0f, 1e-6f);
    std::vector<bool> kept;
    for (std::size_t k = 0; k < 4; ++k) {
      kept.push_back((*noisy)[k] > 0.0f);
      if (!kept.back()) continue;
      const std::size_t first =
          static_cast<std::size_t>(std::find(kept.begin(), kept.end(), true) - kept.begin());
      EXPECT_NEAR((*noisy)[k] / (*noisy)[first], kWeights[k] / kWeights[first], 1e-5);
    }
    subsets.insert(kept);
  }
  EXPECT_NEAR(noisy_steps, 600, 5 * std::sqrt(2000 * 0.3 * 0.7));
  EXPECT_EQ(subsets.size(), 15u);  // every subset but the empty one
}

// Dirichlet(alpha) has mean alpha_k / A and variance m (1 - m) / (A + 1).
TEST(WeightNoise, DirichletHasTheMeanOfTheWeightsAndItsVariance) {
  const double total = 0.5 * 4;
  std::vector<double> sum(4, 0.0), squares(4, 0.0);
  constexpr int kSteps = 20000;
  for (int step = 0; step < kSteps; ++step) {
    const auto noisy = noisy_weights(noise(0.0, 0.5), kWeights, 3, step, 1).value();
    for (std::size_t k = 0; k < 4; ++k) {
      sum[k] += noisy[k];
      squares[k] += noisy[k] * noisy[k];
    }
  }
  for (std::size_t k = 0; k < 4; ++k) {
    const double mean = sum[k] / kSteps, variance = squares[k] / kSteps - mean * mean;
    const double expected = kWeights[k] * (1.0 - kWeights[k]) / (total + 1.0);
    EXPECT_NEAR(mean, kWeights[k], 5 * std::sqrt(expected / kSteps));
    EXPECT_NEAR(variance, expected, 0.05 * expected);
  }
}

TEST(WeightNoise, DependsOnSeedStepAndFfnAlone) {
  const auto draw = [](std::uint64_t seed, std::int64_t step, std::int64_t ffn) {
    return noisy_weights(noise(0.0, 1.0), kWeights, seed, step, ffn).value();
  };
  EXPECT_EQ(draw(1, 2, 3), draw(1, 2, 3));
  EXPECT_NE(draw(1, 2, 3), draw(2, 2, 3));
  EXPECT_NE(draw(1, 2, 3), draw(1, 3, 3));
  EXPECT_NE(draw(1, 2, 3), draw(1, 2, 4));
}

TEST(WeightNoise, KeepsSignsAndTheSumOfSizes) {
  for (const FusionConfig& config : {noise(1.0, 0.0), noise(0.0, 0.3), noise(1.0, 0.3)}) {
    const auto noisy = noisy_weights(config, {-0.5f, 1.5f, 0.0f}, 1, 1, 1).value();
    EXPECT_LE(noisy[0], 0.0f);
    EXPECT_GE(noisy[1], 0.0f);
    EXPECT_EQ(noisy[2], 0.0f);
    EXPECT_NEAR(std::abs(noisy[0]) + std::abs(noisy[1]), 2.0f, 1e-5f);
  }
}

}  // namespace
}  // namespace exfusion
