#include "nn/layers.h"

#include <gtest/gtest.h>

#include <cmath>

#include "module_values.h"
#include "nn/matmul.h"

namespace exfusion {
namespace {

TEST(Linear, MultipliesByTheTransposedWeightAndAddsTheBias) {
  Linear linear(3, 2);
  set_random_values(linear, 1);
  const auto x = random_values({4, 5, 3}, 2), y = linear.forward(x);
  ASSERT_EQ(y.sizes(), (at::IntArrayRef{4, 5, 2}));
  for (int out = 0; out < 2; ++out) {
    double expected = linear.bias[out].item<double>();
    for (int in = 0; in < 3; ++in)
      expected += x[1][2][in].item<double>() * linear.weight[out][in].item<double>();
    EXPECT_NEAR(y[1][2][out].item<double>(), expected, 1e-6);
  }
}

TEST(LayerNorm, NormalisesWithEpsilonOneMillionth) {
  LayerNorm norm(8);
  set_random_values(norm, 3);
  const auto x = random_values({2, 8}, 4) * 1e-3;  // a variance of 1e-6: epsilon shows
  const auto y = norm.forward(x);
  for (int row = 0; row < 2; ++row) {
    double mean = 0.0, variance = 0.0;
    for (int i = 0; i < 8; ++i) mean += x[row][i].item<double>() / 8;
    for (int i = 0; i < 8; ++i) variance += std::pow(x[row][i].item<double>() - mean, 2) / 8;
    for (int i = 0; i < 8; ++i) {
      const double normal = (x[row][i].item<double>() - mean) / std::sqrt(variance + 1e-6);
      const double expected = normal * norm.weight[i].item<double>() + norm.bias[i].item<double>();
      EXPECT_NEAR(y[row][i].item<double>(), expected, 2e-6);
    }
  }
}

TEST(PatchEmbed, IsAConvolutionWhoseStrideIsItsKernel) {
  PatchEmbed embed(3, 4, 10);
  set_random_values(embed, 5);
  const auto images = random_values({2, 3, 12, 12}, 6), gradient = random_values({2, 9, 10}, 7);
  const auto weight = embed.named_parameters()["proj.weight"], bias = embed.named_parameters()["proj.bias"];
  const auto y = embed.forward(images);
  y.backward(gradient);

  const auto same_weight = weight.detach().clone().requires_grad_(), same_bias = bias.detach().clone();
  const auto expected = at::conv2d(images, same_weight, same_bias, 4).flatten(2).transpose(1, 2);
  expected.backward(gradient);
  EXPECT_LT(largest_difference(y, expected), 1e-5);
  EXPECT_LT(largest_difference(weight.grad(), same_weight.grad()), 1e-5);
  EXPECT_LT(largest_difference(bias.grad(), gradient.sum({0, 1})), 1e-5);
}

TEST(Layers, FollowParametersThatAreMovedIntoAnotherBuffer) {
  Linear linear(3, 2);
  auto values = random_values({8}, 8), gradients = at::zeros({8});
  for (auto& parameter : linear.parameters()) {
    const std::int64_t offset = parameter.dim() == 2 ? 0 : 6;
    parameter.set_data(values.narrow(0, offset, parameter.numel()).view(parameter.sizes()));
    parameter.mutable_grad() = gradients.narrow(0, offset, parameter.numel()).view(parameter.sizes());
  }
  const auto x = random_values({4, 3}, 9);
  const auto expected = linear_product(x, values.narrow(0, 0, 6).view({2, 3}), values.narrow(0, 6, 2));
  const auto y = linear.forward(x);
  EXPECT_TRUE(at::equal(y, expected));
  y.sum().backward();
  EXPECT_TRUE(at::equal(gradients.narrow(0, 6, 2), at::full({2}, 4.0)));
  values.zero_();
  EXPECT_TRUE(at::equal(linear.forward(x), at::zeros({4, 2})));
}

}  // namespace
}  // namespace exfusion
