#include "nn/residual.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "bf16_scope.h"
#include "module_values.h"
#include "nn/layers.h"

namespace exfusion {
namespace {

TEST(AddBranch, ScalesEachSamplesBranch) {
  const auto x = at::randn({3, 2, 4}), branch = at::randn({3, 2, 4});
  EXPECT_TRUE(at::equal(add_branch({x, branch, {}}), x + branch));
  const auto y = add_branch({x, branch, at::tensor({0.0f, 1.0f, 1.25f})});
  EXPECT_TRUE(at::equal(y[0], x[0]));
  EXPECT_TRUE(at::equal(y[1], x[1] + branch[1]));
  EXPECT_TRUE(at::allclose(y[2], x[2] + 1.25 * branch[2]));
}

TEST(AddBranch, KeepsTheResidualInFp32WhenTheBranchIsBf16) {
  const auto x = at::randn({2, 3, 4}).requires_grad_();
  const auto branch = at::randn({2, 3, 4}).to(at::kBFloat16).requires_grad_();
  const auto y = add_branch({x, branch, at::tensor({2.0f, 0.0f})});
  EXPECT_EQ(y.scalar_type(), at::kFloat);
  y.sum().backward();
  EXPECT_EQ(branch.grad().scalar_type(), at::kBFloat16);
  EXPECT_TRUE(at::equal(branch.grad()[0].to(at::kFloat), at::full({3, 4}, 2.0)));
  EXPECT_TRUE(at::equal(branch.grad()[1].to(at::kFloat), at::zeros({3, 4})));
}

// Inputs that require gradients, in double or float, with the same values.
struct Inputs {
  Inputs(at::ScalarType type, bool with_branch, at::ScalarType branch_type) {
    x = random_values({3, 5, 37}, 1).to(type).requires_grad_();
    if (with_branch) branch = random_values({3, 5, 37}, 2).to(at::kBFloat16).to(branch_type).requires_grad_();
  }
  at::Tensor x, branch;
};

struct Outcome {
  at::Tensor sum, normed, d_x, d_branch, d_weight, d_bias;
};

const at::Tensor kFactor = at::tensor({0.0f, 1.0f, 1.25f});

// A scalar of both outputs, so that gradients come through both.
void backward(const NormedResidual& outputs) {
  (outputs.sum * random_values({3, 5, 37}, 3) + outputs.normed.to(at::kFloat) * random_values({3, 5, 37}, 4))
      .sum()
      .backward();
}

Outcome ours(bool with_branch, bool with_factor, bool bf16) {
  LayerNorm norm(37);
  set_random_values(norm, 5);
  Inputs inputs(at::kFloat, with_branch, bf16 ? at::kBFloat16 : at::kFloat);
  NormedResidual outputs;
  {
    std::optional<Bf16Scope> scope;
    if (bf16) scope.emplace();
    outputs = add_and_norm({inputs.x, inputs.branch, with_factor ? kFactor : at::Tensor()}, norm);
  }
  backward(outputs);
  return {outputs.sum,        outputs.normed,
          inputs.x.grad(),    with_branch ? inputs.branch.grad() : at::Tensor(),
          norm.weight.grad(), norm.bias.grad()};
}

Outcome in_double(bool with_branch, bool with_factor) {
  LayerNorm norm(37);
  set_random_values(norm, 5);
  norm.to(at::kDouble);
  Inputs inputs(at::kDouble, with_branch, at::kDouble);
  at::Tensor sum = inputs.x;
  if (with_branch) sum = sum + inputs.branch * (with_factor ? kFactor : at::ones({3})).view({3, 1, 1});
  const at::Tensor normed =
      at::layer_norm(sum, {37}, norm.named_parameters()["weight"], norm.named_parameters()["bias"], 1e-6);
  (sum * random_values({3, 5, 37}, 3) + normed * random_values({3, 5, 37}, 4)).sum().backward();
  return {sum,
          normed,
          inputs.x.grad(),
          with_branch ? inputs.branch.grad() : at::Tensor(),
          norm.named_parameters()["weight"].grad(),
          norm.named_parameters()["bias"].grad()};
}

class AddAndNorm : public testing::TestWithParam<std::tuple<bool, bool, bool>> {};

TEST_P(AddAndNorm, OutputsAndGradientsAreThoseOfDoublePrecision) {
  const auto [with_branch, with_factor, bf16] = GetParam();
  const Outcome found = ours(with_branch, with_factor, bf16), expected = in_double(with_branch, with_factor);
  const double rounded = bf16 ? 0.02 : 1e-5;  // what goes through normed or the branch
  EXPECT_EQ(found.normed.scalar_type(), bf16 ? at::kBFloat16 : at::kFloat);
  EXPECT_LT(largest_difference(found.sum, expected.sum), 1e-6);
  EXPECT_LT(largest_difference(found.normed, expected.normed), rounded);
  EXPECT_LT(largest_difference(found.d_x, expected.d_x), rounded);
  EXPECT_LT(largest_difference(found.d_weight, expected.d_weight), rounded * 4);
  EXPECT_LT(largest_difference(found.d_bias, expected.d_bias), rounded * 4);
  if (with_branch) {
    EXPECT_EQ(found.d_branch.scalar_type(), bf16 ? at::kBFloat16 : at::kFloat);
    EXPECT_LT(largest_difference(found.d_branch, expected.d_branch), rounded * 2);
  }
}

INSTANTIATE_TEST_SUITE_P(All, AddAndNorm,
                         testing::Values(std::tuple(false, false, false), std::tuple(false, false, true),
                                         std::tuple(true, false, false), std::tuple(true, false, true),
                                         std::tuple(true, true, false), std::tuple(true, true, true)));

TEST(AddAndNorm, ANumberThatOverflowsWhenSquaredIsNotHidden) {
  LayerNorm norm(8);
  const at::Tensor x = at::ones({1, 2, 8});
  x[0][1][3] = 1e25;
  const at::Tensor normed = add_and_norm({x, {}, {}}, norm).normed;
  EXPECT_TRUE(normed[0][0].isfinite().all().item<bool>());
  EXPECT_TRUE(normed[0][1].isnan().all().item<bool>());
}

TEST(AddAndNorm, HasTheSameBitsForAnyNumberOfThreads) {
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const Outcome one = ours(true, true, false);
  at::set_num_threads(3);
  const Outcome three = ours(true, true, false);
  at::set_num_threads(threads);
  EXPECT_TRUE(at::equal(one.normed, three.normed));
  EXPECT_TRUE(at::equal(one.d_x, three.d_x));
  EXPECT_TRUE(at::equal(one.d_weight, three.d_weight));
}

}  // namespace
}  // namespace exfusion
