#include "nn/smear_ffn.h"

#include <gtest/gtest.h>

#include <cmath>

#include "bf16_scope.h"
#include "nn/ffn.h"
#include "slow_ffn.h"

namespace exfusion {
namespace {

FfnConfig smear_config() {
  FfnConfig config;
  config.name = "smear";
  config.experts = kExperts;
  return config;
}

// Example by example: mean token, probabilities, the four merged tensors, then token by token.
at::Tensor slow_smear(const SlowTensors& t, const at::Tensor& x) {
  std::vector<at::Tensor> outputs;
  for (std::int64_t i = 0; i < x.size(0); ++i) {
    at::Tensor mean = at::zeros({kDim}, at::kDouble);
    for (std::int64_t token = 0; token < x.size(1); ++token) mean = mean + x[i][token];
    const at::Tensor e = t.at("router.weight").mv(mean / static_cast<double>(x.size(1))).exp();
    SlowTensors merged;
    for (const char* name : kFfnTensors) {
      const std::string key = std::string("experts.") + name;
      at::Tensor sum = at::zeros_like(t.at(key)[0]);
      for (std::int64_t k = 0; k < kExperts; ++k) sum = sum + e[k] / e.sum() * t.at(key)[k];
      merged[key] = sum.unsqueeze(0);
    }
    for (std::int64_t token = 0; token < x.size(1); ++token)
      outputs.push_back(slow_expert(merged, 0, x[i][token]));
  }
  return at::stack(outputs).view(x.sizes());
}

TEST(SmearFfn, OutputAndGradientsAreThoseOfALoopInDoublePrecision) {
  SmearFfn ffn(smear_config(), kDim, kHidden, 0);
  set_random_values(ffn, 3);
  const SlowTensors slow_tensors = slow_copies(ffn);
  const at::Tensor x = random_values({kImages, kTokens, kDim}, 4).set_requires_grad(true);
  const at::Tensor slow_x = x.detach().to(at::kDouble).set_requires_grad(true);
  const at::Tensor weight = random_values({kImages, kTokens, kDim}, 5);
  const at::Tensor y = ffn.forward(x), expected = slow_smear(slow_tensors, slow_x);
  EXPECT_LT(largest_difference(y, expected), 2e-5);
  (y * weight).sum().backward();
  (expected * weight.to(at::kDouble)).sum().backward();
  expect_same_gradients(ffn, x, slow_tensors, slow_x, 1e-4);
}

TEST(SmearFfn, AnExampleDependsOnItselfAloneInTrainingToo) {
  SmearFfn ffn(smear_config(), kDim, kHidden, 0);
  set_random_values(ffn, 3);
  const at::Tensor x = random_values({kImages, kTokens, kDim}, 4);
  EXPECT_LT(largest_difference(ffn.forward(x)[1], ffn.forward(x.narrow(0, 1, 1))[0]), 1e-6);
  EXPECT_FALSE(ffn.auxiliary_loss().defined());
  EXPECT_FALSE(ffn.dense_form().has_value());
}

TEST(SmearFfn, EqualExpertsAreTheDenseFfn) {
  SmearFfn ffn(smear_config(), kDim, kHidden, 0);
  Ffn dense(kDim, kHidden);
  set_random_values(ffn, 3);
  dense.draw_parameters(7, 2);
  const at::NoGradGuard no_grad;
  for (const auto& item : dense.named_parameters())
    ffn.named_parameters()["experts." + item.key()].copy_(item.value().unsqueeze(0));
  const at::Tensor x = random_values({kImages, kTokens, kDim}, 4);
  EXPECT_LT(largest_difference(ffn.forward(x), dense.forward(x)), 1e-7);
}

// Probabilities in bf16 would miss by about 2^-9 of the experts' differences; these are 1000 times the
// weights.
TEST(SmearFfn, UnderBf16RouterAndMergeStayInFp32) {
  FfnConfig config = smear_config();
  config.experts = 2;
  SmearFfn ffn(config, kDim, kHidden, 0);
  set_random_values(ffn, 3);
  const at::NoGradGuard no_grad;
  const at::Tensor fc1 = ffn.named_parameters()["experts.fc1.weight"];
  ffn.named_parameters()["router.weight"].zero_();  // p = 1/2 each
  fc1[0].add_(1000.0);
  fc1[1].sub_(1000.0);  // they cancel in the merge
  const at::Tensor x = random_values({kImages, kTokens, kDim}, 4), exact = ffn.forward(x);
  const Bf16Scope bf16;
  const at::Tensor rounded = ffn.forward(x);
  EXPECT_EQ(rounded.scalar_type(), at::kBFloat16);
  EXPECT_LT(largest_difference(rounded, exact), 0.02 * exact.abs().max().item<double>());
}

TEST(SmearFfn, CountsItsFlops) {
  const SmearFfn ffn(smear_config(), kDim, kHidden, 0);
  const double router = 2 * 4 * 6, merge = 2 * 4 * (2 * 6 * 9 + 6 + 9), tokens = 10 * (2 * 2 * 6 * 9);
  EXPECT_EQ(ffn.forward_flops(10), router + merge + tokens);
}

}  // namespace
}  // namespace exfusion
