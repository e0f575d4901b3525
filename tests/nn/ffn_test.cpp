#include "nn/ffn.h"

#include <gtest/gtest.h>

#include <cmath>

#include "module_values.h"
#include "nn/block.h"

namespace exfusion {
namespace {

TEST(Ffn, FollowsTheFormulaWithTheExactGelu) {
  constexpr std::int64_t kDim = 6, kHidden = 15;
  Ffn ffn(kDim, kHidden);
  set_random_values(ffn, 1);
  const auto x = random_values({1, 3, kDim}, 2), y = ffn.forward(x);
  const auto parameters = ffn.parameters_in_order();
  for (std::int64_t token = 0; token < 3; ++token) {
    std::vector<double> expected(kDim);
    for (std::int64_t i = 0; i < kDim; ++i) expected[i] = parameters[3][i].item<double>();
    for (std::int64_t h = 0; h < kHidden; ++h) {
      double z = parameters[1][h].item<double>();
      for (std::int64_t i = 0; i < kDim; ++i) {
        z += parameters[0][h][i].item<double>() * x[0][token][i].item<double>();
      }
      const double activation = z * 0.5 * (1.0 + std::erf(z / std::sqrt(2.0)));
      for (std::int64_t i = 0; i < kDim; ++i) expected[i] += parameters[2][i][h].item<double>() * activation;
    }
    for (std::int64_t i = 0; i < kDim; ++i) EXPECT_NEAR(y[0][token][i].item<double>(), expected[i], 1e-5);
  }
}

TEST(Ffn, ParametersInOrderAreThoseOfTheNames) {
  Ffn ffn(4, 10);
  const auto named = ffn.named_parameters();
  const auto ordered = ffn.parameters_in_order();
  ASSERT_EQ(named.size(), kFfnTensors.size());
  for (std::size_t i = 0; i < kFfnTensors.size(); ++i) {
    EXPECT_EQ(named.pairs()[i].first, kFfnTensors[i]);
    EXPECT_TRUE(named[kFfnTensors[i]].is_same(ordered[i])) << kFfnTensors[i];
  }
}

TEST(FindFfns, NamesThemInTheOrderOfTheForwardPass) {
  torch::nn::Module model;
  const auto blocks = model.register_module("blocks", std::make_shared<torch::nn::Module>());
  for (int i = 0; i < 11; ++i)
    blocks->register_module(std::to_string(i), std::make_shared<Block>(4, 2, std::make_shared<Ffn>(4, 8)));
  const auto ffns = find_ffns(model);
  ASSERT_EQ(ffns.size(), 11U);
  EXPECT_EQ(ffns[2].name, "blocks.2.mlp");
  EXPECT_EQ(ffns[10].name, "blocks.10.mlp");
  EXPECT_TRUE(
      model.named_parameters()["blocks.10.mlp.fc1.weight"].is_same(ffns[10].ffn->parameters_in_order()[0]));
}

TEST(InitialFfn, HasTheShapesAndZeroBiases) {
  const auto values = initial_ffn(6, 15, 1, 0, 0);
  EXPECT_EQ(values[0].sizes(), (at::IntArrayRef{15, 6}));
  EXPECT_EQ(values[2].sizes(), (at::IntArrayRef{6, 15}));
  EXPECT_TRUE(at::equal(values[1], at::zeros({15})));
  EXPECT_TRUE(at::equal(values[3], at::zeros({6})));
}

TEST(InitialFfn, DependsOnSeedFfnAndExpertAndOnNothingElse) {
  const auto first = [](std::uint64_t seed, std::int64_t ffn, std::int64_t expert) {
    return initial_ffn(6, 15, seed, ffn, expert)[0];
  };
  EXPECT_TRUE(at::equal(first(1, 2, 3), first(1, 2, 3)));
  EXPECT_FALSE(at::equal(first(1, 2, 3), first(2, 2, 3)));
  EXPECT_FALSE(at::equal(first(1, 2, 3), first(1, 3, 3)));
  EXPECT_FALSE(at::equal(first(1, 2, 3), first(1, 2, 4)));
  EXPECT_FALSE(at::equal(first(1, 2, 3), initial_ffn(15, 6, 1, 2, 3)[2].view({15, 6})));  // fc1 is not fc2
}

}  // namespace
}  // namespace exfusion
