#include "fusion/expert_statistics.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>

#include "nn/ffn.h"
#include "numbers.h"

namespace exfusion {
namespace {

TEST(WeightStatistics, HaveTheirClosedForms) {
  const std::vector<float> uniform(4, 0.25f), one = {0.0f, 1.0f, 0.0f}, free = {1.0f, -0.5f, 0.5f};
  EXPECT_NEAR(weight_entropy(uniform), std::log(4.0), 1e-12);
  EXPECT_EQ(weight_entropy(one), 0.0);
  EXPECT_NEAR(weight_entropy(free), 1.5 * std::log(2.0), 1e-12);  // shares 1/2, 1/4, 1/4
  EXPECT_EQ(sum_of_sizes(free), 2.0);
}

TEST(WeightStatistics, TheWardropGapIsZeroAtEqualPricesOfUsedExperts) {
  const std::vector<float> a = {0.5f, 0.5f, 0.0f};
  EXPECT_EQ(wardrop_gap(a, std::vector<double>{2.0, 2.0, 3.0}), 0.0);
  EXPECT_EQ(wardrop_gap(a, std::vector<double>{2.0, 4.0, 3.0}), 1.0);
  EXPECT_EQ(wardrop_gap(a, std::vector<double>{2.0, 2.0, -1.0}), 3.0);  // who is not used would be cheaper
}

struct Bank {
  explicit Bank(const FusionConfig& config) {
    const auto values = initial_ffn(8, 12, 3, 0, 0);
    std::vector<ParameterSlot> slots(4);
    for (std::size_t t = 0; t < 4; ++t)
      slots[t] = {
          .name = kFfnTensors[t], .parameter = values[t].clone().requires_grad_(), .decay = t % 2 == 0};
    flat = std::make_unique<FlatParameters>(slots);
    bank = std::make_unique<ExpertBank>(config, *flat, 0, "mlp", 0, 3);
  }
  // Updates with random gradients; returns what decay alone would leave.
  double run(int steps, double z_lr) {
    AdamWConfig config;
    config.weight_decay = 0.5;
    config.eps = 1e-20;
    double decay = 1.0;
    for (int t = 1; t <= steps; ++t) {
      flat->gradients().copy_(normal_numbers({flat->gradients().numel()}, static_cast<std::uint64_t>(t)));
      bank->update(config, 1e-2, z_lr, t, 1.0f);
      decay *= 1.0 - 1e-2 * 0.5;
    }
    return decay;
  }
  std::unique_ptr<FlatParameters> flat;
  std::unique_ptr<ExpertBank> bank;
};

FusionConfig three_experts(const std::string& weights) {
  FusionConfig config;
  config.experts = 3;
  config.weights = weights;
  return config;
}

// Constant weights under AdamW: differences only shrink, and all experts learn the same.
TEST(ExpertGeometry, OfStaticWeightsIsWhatTheoryPredicts) {
  Bank fused(three_experts("static"));
  const double decay = fused.run(50, 0.0);
  const ExpertGeometry geometry = measure_geometry(*fused.bank, decay);
  EXPECT_NEAR(geometry.difference_ratio, decay, 1e-5);
  EXPECT_NEAR(geometry.difference_cosine, 1.0, 1e-6);
  EXPECT_NEAR(geometry.update_participation, 1.0, 1e-5);
  EXPECT_NEAR(geometry.shares[0] + geometry.shares[1] + geometry.shares[2], 1.0, 1e-6);
}

// The participation ratio from singular values: (sum s^2)^2 / sum s^4.
TEST(ExpertGeometry, OfMovingWeightsAgreesWithSingularValues) {
  Bank fused(three_experts("learned"));
  const double decay = fused.run(50, 0.3);
  const ExpertGeometry geometry = measure_geometry(*fused.bank, decay);
  EXPECT_GT(geometry.update_participation, 1.001);
  EXPECT_LT(geometry.difference_cosine, 0.9999);
  std::vector<at::Tensor> rows;
  for (std::int64_t k = 0; k < 3; ++k) {
    const FfnTensors start = fused.bank->initial_tensors(k);
    std::vector<at::Tensor> parts;
    for (std::size_t t : {0u, 2u})
      parts.push_back((fused.bank->expert_tensors()[t][k].to(at::kDouble) - start[t].to(at::kDouble) * decay)
                          .reshape({-1}));
    rows.push_back(at::cat(parts));
  }
  const at::Tensor squares = at::linalg_svdvals(at::stack(rows)).pow(2);
  const double expected = (squares.sum().pow(2) / squares.pow(2).sum()).item<double>();
  EXPECT_NEAR(geometry.update_participation, expected, 1e-9);
}

TEST(ExpertGeometry, IsUndefinedWithoutDifferences) {
  FusionConfig one = three_experts("static");
  one.experts = 1;
  Bank single(one);
  EXPECT_TRUE(std::isnan(measure_geometry(*single.bank, single.run(3, 0.0)).difference_ratio));
}

}  // namespace
}  // namespace exfusion
