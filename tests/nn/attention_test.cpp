#include "nn/attention.h"

#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>

#include <cmath>

#include "module_values.h"

namespace exfusion {
namespace {

constexpr std::int64_t kLength = 5, kWidth = 12, kHeads = 3, kHeadDim = kWidth / kHeads;

// The formula written out, one number at a time, in double precision.
at::Tensor attention_by_hand(const at::Tensor& x, const Attention& module) {
  const auto values = module.named_parameters();
  const auto at_double = [&](const char* name) { return values[name].detach().to(at::kDouble); };
  const auto qkv = at::linear(x.to(at::kDouble), at_double("qkv.weight"), at_double("qkv.bias"));
  const auto part = qkv.accessor<double, 3>();  // [n, tokens, 3 dim]
  auto heads = at::zeros({x.size(0), kLength, kWidth}, at::kDouble);
  auto result = heads.accessor<double, 3>();
  for (std::int64_t n = 0; n < x.size(0); ++n) {
    for (std::int64_t head = 0; head < kHeads; ++head) {
      for (std::int64_t i = 0; i < kLength; ++i) {
        std::vector<double> weight(kLength, 0.0);
        double sum = 0.0;
        for (std::int64_t j = 0; j < kLength; ++j) {
          for (std::int64_t c = head * kHeadDim; c < (head + 1) * kHeadDim; ++c) {
            weight[j] += part[n][i][c] * part[n][j][kWidth + c];
          }
          weight[j] = std::exp(weight[j] / std::sqrt(static_cast<double>(kHeadDim)));
          sum += weight[j];
        }
        for (std::int64_t j = 0; j < kLength; ++j) {
          for (std::int64_t c = head * kHeadDim; c < (head + 1) * kHeadDim; ++c) {
            result[n][i][c] += weight[j] / sum * part[n][j][2 * kWidth + c];
          }
        }
      }
    }
  }
  return at::linear(heads, at_double("proj.weight"), at_double("proj.bias"));
}

TEST(Attention, FollowsTheFormula) {
  Attention attention(kWidth, kHeads);
  set_random_values(attention, 1);
  const auto x = random_values({2, kLength, kWidth}, 2);
  EXPECT_LT(largest_difference(attention.forward(x), attention_by_hand(x, attention)), 1e-5);
}

TEST(Attention, GradientIsThatOfLibtorchsOwnAttention) {
  Attention attention(kWidth, kHeads);
  set_random_values(attention, 3);
  const auto x = random_values({2, kLength, kWidth}, 4).requires_grad_();
  const auto gradient = random_values({2, kLength, kWidth}, 5);
  attention.forward(x).backward(gradient);
  const auto ours = x.grad().clone();
  const auto ours_qkv = attention.named_parameters()["qkv.weight"].grad().clone();

  attention.zero_grad();
  x.mutable_grad() = at::Tensor();
  const auto values = attention.named_parameters();
  const auto qkv = at::linear(x, values["qkv.weight"], values["qkv.bias"])
                       .view({2, kLength, 3, kHeads, kHeadDim})
                       .permute({2, 0, 3, 1, 4});
  const auto heads = at::scaled_dot_product_attention(qkv[0], qkv[1], qkv[2]);
  at::linear(heads.transpose(1, 2).reshape({2, kLength, kWidth}), values["proj.weight"], values["proj.bias"])
      .backward(gradient);
  EXPECT_LT(largest_difference(ours, x.grad()), 1e-5);
  EXPECT_LT(largest_difference(ours_qkv, values["qkv.weight"].grad()), 1e-5);
}

struct Shape {
  std::int64_t tokens, heads, head_dim;
};

class AttentionShapes : public testing::TestWithParam<Shape> {};

// Our kernel (and beyond its tokens the products) against libtorch's own attention in double precision.
TEST_P(AttentionShapes, OutputAndGradientAreThoseOfDoublePrecision) {
  const auto [tokens, heads, head_dim] = GetParam();
  const std::int64_t dim = heads * head_dim;
  Attention attention(dim, heads);
  set_random_values(attention, 8);
  for (const auto& parameter : attention.parameters()) parameter.detach().mul_(0.4);
  const auto x = random_values({2, tokens, dim}, 9), gradient = random_values({2, tokens, dim}, 10);
  const auto leaf = x.clone().requires_grad_();
  const auto y = attention.forward(leaf);
  y.backward(gradient);

  const auto values = attention.named_parameters();
  const auto at_double = [&](const char* name) { return values[name].detach().to(at::kDouble); };
  const auto exact = x.to(at::kDouble).requires_grad_(), weight = at_double("qkv.weight").requires_grad_();
  const auto qkv = at::linear(exact, weight, at_double("qkv.bias"))
                       .view({2, tokens, 3, heads, head_dim})
                       .permute({2, 0, 3, 1, 4});
  const auto outputs = at::scaled_dot_product_attention(qkv[0], qkv[1], qkv[2]);
  const auto expected = at::linear(outputs.transpose(1, 2).reshape({2, tokens, dim}),
                                   at_double("proj.weight"), at_double("proj.bias"));
  expected.backward(gradient.to(at::kDouble));
  const auto relative = [](const at::Tensor& a, const at::Tensor& b) {
    return largest_difference(a, b) / b.abs().max().item<double>();
  };
  EXPECT_LT(relative(y, expected), 2e-6);
  EXPECT_LT(relative(leaf.grad(), exact.grad()), 5e-6);
  EXPECT_LT(relative(values["qkv.weight"].grad(), weight.grad()), 5e-6);
}

INSTANTIATE_TEST_SUITE_P(Sizes, AttentionShapes,
                         testing::Values(Shape{1, 1, 1}, Shape{17, 4, 16}, Shape{50, 2, 64}, Shape{16, 1, 24},
                                         Shape{33, 3, 10}, Shape{70, 1, 80}, Shape{256, 1, 8},
                                         Shape{257, 1, 8}));

TEST(Attention, ANumberThatIsNoneStaysOne) {
  Attention attention(kWidth, kHeads);
  set_random_values(attention, 11);
  const auto x = random_values({1, kLength, kWidth}, 12);
  x[0][2][3] = NAN;
  EXPECT_TRUE(attention.forward(x).isnan().all().item<bool>());
}

TEST(Attention, WorksUnderAutocastWithFp32Gradients) {
  Attention attention(kWidth, kHeads);
  set_random_values(attention, 6);
  const auto x = random_values({2, kLength, kWidth}, 7);
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  at::autocast::set_autocast_enabled(at::kCPU, true);
  const auto y = attention.forward(x);
  at::autocast::set_autocast_enabled(at::kCPU, false);
  at::autocast::clear_cache();
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
  const auto expected = attention_by_hand(x, attention);
  EXPECT_LT(largest_difference(y, expected), 0.03 * expected.abs().max().item<double>());
  y.sum().backward();
  for (const auto& parameter : attention.parameters()) EXPECT_EQ(parameter.grad().scalar_type(), at::kFloat);
}

}  // namespace
}  // namespace exfusion
