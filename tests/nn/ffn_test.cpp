#include "nn/ffn.h"

#include <gtest/gtest.h>

#include <cmath>

#include "bf16_scope.h"
#include "module_values.h"
#include "nn/block.h"
#include "nn/layers.h"

namespace exfusion {
namespace {

TEST(Ffn, FollowsTheFormulaWithTheExactGelu) {
  constexpr std::int64_t kInputs = 6, kInner = 15;
  Ffn ffn(kInputs, kInner);
  set_random_values(ffn, 1);
  const auto x = random_values({1, 3, kInputs}, 2), y = ffn.forward(x);
  const auto parameters = ffn.parameters_in_order();
  for (std::int64_t token = 0; token < 3; ++token) {
    std::vector<double> expected(kInputs);
    for (std::int64_t i = 0; i < kInputs; ++i) expected[i] = parameters[3][i].item<double>();
    for (std::int64_t h = 0; h < kInner; ++h) {
      double z = parameters[1][h].item<double>();
      for (std::int64_t i = 0; i < kInputs; ++i) {
        z += parameters[0][h][i].item<double>() * x[0][token][i].item<double>();
      }
      const double activation = z * 0.5 * (1.0 + std::erf(z / std::sqrt(2.0)));
      for (std::int64_t i = 0; i < kInputs; ++i)
        expected[i] += parameters[2][i][h].item<double>() * activation;
    }
    for (std::int64_t i = 0; i < kInputs; ++i) EXPECT_NEAR(y[0][token][i].item<double>(), expected[i], 1e-5);
  }
}

// Output and gradients of x and the four tensors.
std::vector<at::Tensor> ffn_and_gradients(at::ScalarType type, bool bf16) {
  FfnTensors tensors = {random_values({70, 24}, 1), random_values({70}, 2), random_values({24, 70}, 3),
                        random_values({24}, 4)};
  // Values that bf16 holds exactly, so that only the arithmetic differs.
  const auto leaf = [&](const at::Tensor& x) {
    return (x * 0.3).to(at::kBFloat16).to(type).requires_grad_();
  };
  for (at::Tensor& tensor : tensors) tensor = leaf(tensor);
  const at::Tensor x = leaf(random_values({2, 33, 24}, 5) * 4.0);
  at::Tensor y;
  {
    std::optional<Bf16Scope> scope;
    if (bf16) scope.emplace();
    y = ffn_output(x, tensors);
  }
  (y.to(type) * random_values({2, 33, 24}, 6).to(at::kBFloat16).to(type)).sum().backward();
  std::vector<at::Tensor> all = {y.detach(), x.grad()};
  for (const at::Tensor& tensor : tensors) all.push_back(tensor.grad());
  return all;
}

TEST(Ffn, OutputAndGradientsAreThoseOfDoublePrecision) {
  const auto expected = ffn_and_gradients(at::kDouble, false);  // libtorch's own operators
  for (const bool bf16 : {false, true}) {
    const auto found = ffn_and_gradients(at::kFloat, bf16);
    for (std::size_t i = 0; i < found.size(); ++i) {
      EXPECT_EQ(found[i].scalar_type(), bf16 && i == 0 ? at::kBFloat16 : at::kFloat);
      const double scale = expected[i].norm().item<double>();
      EXPECT_LT((found[i].to(at::kDouble) - expected[i]).norm().item<double>(), (bf16 ? 0.01 : 1e-6) * scale)
          << "tensor " << i << (bf16 ? " in bf16" : " in fp32");
    }
  }
}

TEST(Ffn, ReadsTheCopiesInBf16WhereTheyAreKept) {
  Ffn ffn(8, 20);
  set_random_values(ffn, 7);
  const auto x = random_values({3, 8}, 8);
  const Bf16Scope scope;
  const auto cast = ffn.forward(x);
  for (const auto& module : ffn.modules(/*include_self=*/false)) {
    auto& fc = dynamic_cast<Linear&>(*module);
    fc.weight_bf16 = fc.weight.detach().to(at::kBFloat16);
    fc.bias_bf16 = fc.bias.detach().to(at::kBFloat16);
  }
  EXPECT_TRUE(at::equal(ffn.forward(x), cast));
  dynamic_cast<Linear&>(*ffn.modules(false)[1]).bias_bf16.zero_();
  EXPECT_FALSE(at::equal(ffn.forward(x), cast));
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
