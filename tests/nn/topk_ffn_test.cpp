#include "nn/topk_ffn.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "bf16_scope.h"
#include "nn/ffn.h"
#include "slow_ffn.h"

namespace exfusion {
namespace {

FfnConfig config_of(std::int64_t experts, std::int64_t top_k) {
  FfnConfig config;
  config.name = "topk";
  config.experts = experts;
  config.top_k = top_k;
  config.balance_loss = 0.0;
  return config;
}

struct Slow {
  at::Tensor output, balance, z;
  std::vector<double> loads;
  int dropped = 0;
};

// Token by token, choice by choice.
Slow slow_topk(const FfnConfig& config, const SlowTensors& t, const at::Tensor& x,
               const std::vector<double>& bias, bool training) {
  const auto n = static_cast<std::size_t>(config.experts);
  const at::Tensor rows = x.reshape({-1, kDim});
  const auto assignments = static_cast<double>(rows.size(0) * config.top_k);
  const double capacity = training && config.capacity_factor > 0.0
                              ? std::ceil(config.capacity_factor * assignments / static_cast<double>(n))
                              : assignments;
  Slow slow{.output = {}, .balance = {}, .z = at::zeros({}, at::kDouble), .loads = std::vector<double>(n)};
  at::Tensor mean = at::zeros({config.experts}, at::kDouble);
  std::vector<at::Tensor> outputs;
  for (std::int64_t token = 0; token < rows.size(0); ++token) {
    const at::Tensor logits = t.at("router.weight").mv(rows[token]);
    const at::Tensor e = logits.exp(), p = e / e.sum();
    mean = mean + p / static_cast<double>(rows.size(0));
    slow.z = slow.z + e.sum().log().square() / static_cast<double>(rows.size(0));
    std::vector<std::int64_t> by_score(n);
    std::iota(by_score.begin(), by_score.end(), 0);
    const auto score = [&](std::int64_t k) {
      return p[k].item<double>() + bias[static_cast<std::size_t>(k)];
    };
    std::ranges::stable_sort(by_score, [&](std::int64_t a, std::int64_t b) { return score(a) > score(b); });
    at::Tensor y = at::zeros({kDim}, at::kDouble), sum = at::zeros({}, at::kDouble);
    for (std::int64_t choice = 0; choice < config.top_k; ++choice)
      sum = sum + p[by_score[static_cast<std::size_t>(choice)]];
    for (std::int64_t choice = 0; choice < config.top_k; ++choice) {
      const std::int64_t k = by_score[static_cast<std::size_t>(choice)];
      if (++slow.loads[static_cast<std::size_t>(k)] > capacity) {
        ++slow.dropped;
        continue;
      }
      const at::Tensor gate = config.renormalize && config.top_k > 1 ? p[k] / sum : p[k];
      y = y + gate * slow_expert(t, k, rows[token]);
    }
    outputs.push_back(y);
  }
  slow.output = at::stack(outputs).view(x.sizes());
  slow.balance = at::zeros({}, at::kDouble);
  for (std::size_t k = 0; k < n; ++k)
    slow.balance = slow.balance +
                   static_cast<double>(n) * slow.loads[k] / assignments * mean[static_cast<std::int64_t>(k)];
  return slow;
}

struct Case {
  const char* what;
  std::int64_t experts, top_k;
  bool renormalize;
  double capacity_factor, balance_loss, z_loss, bias_balance;
  bool drops;
};

class TopkParity : public testing::TestWithParam<Case> {};

TEST_P(TopkParity, OutputLossesAndGradientsAreThoseOfALoopInDoublePrecision) {
  const Case& c = GetParam();
  FfnConfig config = config_of(c.experts, c.top_k);
  config.renormalize = c.renormalize;
  config.capacity_factor = c.capacity_factor;
  config.balance_loss = c.balance_loss;
  config.z_loss = c.z_loss;
  config.bias_balance = c.bias_balance;
  TopkFfn ffn(config, kDim, kHidden, 0);
  set_random_values(ffn, 3);
  std::vector<double> bias(static_cast<std::size_t>(c.experts), 0.0);
  if (c.bias_balance > 0.0) {
    for (std::int64_t k = 0; k < c.experts; ++k) {
      bias[static_cast<std::size_t>(k)] = 0.25 * static_cast<double>(k);
      ffn.named_buffers()["selection_bias"][k] = bias[static_cast<std::size_t>(k)];
    }
  }
  const SlowTensors slow_tensors = slow_copies(ffn);
  const at::Tensor x = random_values({kImages, kTokens, kDim}, 4).set_requires_grad(true);
  const at::Tensor slow_x = x.detach().to(at::kDouble).set_requires_grad(true);
  const at::Tensor weight = random_values({kImages, kTokens, kDim}, 5);

  const at::Tensor y = ffn.forward(x), extra = ffn.auxiliary_loss();
  const Slow slow = slow_topk(config, slow_tensors, slow_x, bias, true);
  EXPECT_LT(largest_difference(y, slow.output), 2e-5);
  EXPECT_EQ(slow.dropped > 0, c.drops) << slow.dropped;
  const at::Tensor slow_extra = c.balance_loss * slow.balance + c.z_loss * slow.z;
  ASSERT_EQ(extra.defined(), c.balance_loss > 0.0 || c.z_loss > 0.0);
  at::Tensor loss = (y * weight).sum();
  if (extra.defined()) {
    EXPECT_NEAR(extra.item<double>(), slow_extra.item<double>(), 1e-5);
    loss = loss + extra;
  }
  loss.backward();
  ((slow.output * weight.to(at::kDouble)).sum() + slow_extra).backward();
  expect_same_gradients(ffn, x, slow_tensors, slow_x, 1e-4);
}

INSTANTIATE_TEST_SUITE_P(Branches, TopkParity,
                         testing::Values(Case{"switch", 4, 1, true, 0, 0, 0, 0, false},
                                         Case{"two", 4, 2, true, 0, 0, 0, 0, false},
                                         Case{"plain_probabilities", 4, 2, false, 0, 0, 0, 0, false},
                                         Case{"all_experts", 3, 3, true, 0, 0, 0, 0, false},
                                         Case{"one_expert", 1, 1, true, 0, 0, 0, 0, false},
                                         Case{"more_experts_than_tokens", 40, 2, true, 0, 0.5, 0, 0, false},
                                         Case{"drops", 4, 2, true, 0.5, 0, 0, 0, true},
                                         Case{"switch_drops", 4, 1, true, 0.75, 0.3, 0, 0, true},
                                         Case{"large_capacity", 4, 2, true, 4.0, 0, 0, 0, false},
                                         Case{"balance", 4, 2, true, 0, 0.7, 0, 0, false},
                                         Case{"z", 4, 2, true, 0, 0, 0.3, 0, false},
                                         Case{"both_losses_and_drops", 4, 2, false, 0.6, 0.7, 0.3, 0, true},
                                         Case{"biases", 4, 2, true, 0, 0.2, 0, 0.01, false}),
                         [](const auto& parameter) { return std::string(parameter.param.what); });

TEST(TopkFfn, InEvaluationNothingIsDroppedSoAnImageDoesNotDependOnItsBatch) {
  FfnConfig config = config_of(4, 2);
  config.capacity_factor = 0.5;
  TopkFfn ffn(config, kDim, kHidden, 0);
  set_random_values(ffn, 3);
  const at::Tensor x = random_values({kImages, kTokens, kDim}, 4);
  const at::Tensor training = ffn.forward(x);
  ffn.eval();
  const at::Tensor evaluated = ffn.forward(x);
  EXPECT_FALSE(at::allclose(training, evaluated));
  EXPECT_LT(largest_difference(evaluated[1], ffn.forward(x.narrow(0, 1, 1))[0]), 1e-6);
}

TEST(TopkFfn, TiesGoToTheLowerNumber) {
  TopkFfn ffn(config_of(5, 2), kDim, kHidden, 0);
  set_random_values(ffn, 3);
  const at::NoGradGuard no_grad;
  ffn.named_parameters()["router.weight"].zero_();
  const at::Tensor x = random_values({1, 2, kDim}, 4);
  const SlowTensors t = slow_copies(ffn);
  const at::Tensor token = x[0][1].to(at::kDouble);
  const at::Tensor expected = 0.5 * (slow_expert(t, 0, token) + slow_expert(t, 1, token));
  EXPECT_LT(largest_difference(ffn.forward(x)[0][1], expected), 1e-5);
}

// One expert, gate 1: the dense FFN itself.
TEST(TopkFfn, OneExpertIsTheDenseFfnBitForBit) {
  TopkFfn ffn(config_of(1, 1), kDim, kHidden, 0);
  Ffn dense(kDim, kHidden);
  ffn.draw_parameters(7, 2);
  dense.draw_parameters(7, 2);
  const at::Tensor x = random_values({kImages, kTokens, kDim}, 4);
  EXPECT_TRUE(at::equal(ffn.forward(x), dense.forward(x)));
}

TEST(TopkFfn, AnExpertWithoutTokensGetsAGradientOfZeroInAGivenBuffer) {
  TopkFfn ffn(config_of(4, 1), kDim, kHidden, 0);
  set_random_values(ffn, 3);
  {
    const at::NoGradGuard no_grad;
    ffn.named_parameters()["router.weight"].zero_();  // every token goes to expert 0
  }
  at::Tensor stacked = ffn.named_parameters()["experts.fc1.weight"];
  const at::Tensor buffer = at::ones_like(stacked);
  stacked.mutable_grad() = buffer;
  ffn.forward(random_values({kImages, kTokens, kDim}, 4)).sum().backward();
  EXPECT_TRUE(stacked.grad().is_same(buffer));
  EXPECT_FALSE(at::equal(buffer[0], at::ones_like(buffer[0])));
  EXPECT_TRUE(at::equal(buffer.narrow(0, 1, 3), at::ones({3, kHidden, kDim})));
}

TEST(TopkFfn, TheBalanceLossIsOneWhenBalancedAndTheNumberOfExpertsWhenCollapsed) {
  FfnConfig config = config_of(4, 1);
  config.balance_loss = 1.0;
  TopkFfn ffn(config, 4, kHidden, 0);
  set_random_values(ffn, 3);
  const at::NoGradGuard no_grad;
  ffn.named_parameters()["router.weight"].copy_(30.0 * at::eye(4));
  ffn.forward(at::eye(4).view({1, 4, 4}));  // token e goes to expert e
  EXPECT_NEAR(ffn.auxiliary_loss().item<double>(), 1.0, 1e-6);
  ffn.forward(at::eye(4).narrow(0, 2, 1).expand({1, 4, 4}));  // all to expert 2
  EXPECT_NEAR(ffn.auxiliary_loss().item<double>(), 4.0, 1e-6);
}

TEST(TopkFfn, SelectionBiasesMoveByTheSignOfTheStepsLoad) {
  FfnConfig config = config_of(4, 1);
  config.bias_balance = 0.125;
  TopkFfn ffn(config, 4, kHidden, 0);
  set_random_values(ffn, 3);
  const at::NoGradGuard no_grad;
  ffn.named_parameters()["router.weight"].copy_(30.0 * at::eye(4));
  const at::Tensor bias = ffn.named_buffers()["selection_bias"];
  const auto pass = [&](std::int64_t micro_batch, const std::vector<std::int64_t>& experts) {
    ffn.begin_pass({1, 0, micro_batch});
    ffn.forward(at::eye(4).index_select(0, at::tensor(experts, at::kLong)).unsqueeze(0));
  };
  pass(0, {3, 3, 3});  // of a step that was skipped: begin_pass forgets it
  pass(0, {0, 0, 0, 1});
  pass(1, {0, 1, 1, 2});  // loads of the step: 4, 3, 1, 0; mean 2
  ffn.after_update(0.5);
  EXPECT_TRUE(at::equal(bias, at::tensor({-0.125f, -0.125f, 0.125f, 0.125f}))) << bias;
  pass(0, {0, 1, 2, 3});  // balanced: the sign of 0 is 0
  ffn.after_update(0.5);
  EXPECT_TRUE(at::equal(bias, at::tensor({-0.125f, -0.125f, 0.125f, 0.125f}))) << bias;
  ffn.eval();
  pass(0, {0, 0, 0, 0});  // evaluation counts nothing
  ffn.train();
  ffn.after_update(0.5);
  EXPECT_TRUE(at::equal(bias, at::tensor({-0.125f, -0.125f, 0.125f, 0.125f}))) << bias;
}

TEST(TopkFfn, BiasesAreABufferAndOnlyThereWhenAskedFor) {
  EXPECT_EQ(TopkFfn(config_of(4, 2), kDim, kHidden, 0).named_buffers().size(), 0U);
  FfnConfig config = config_of(4, 2);
  config.bias_balance = 0.1;
  TopkFfn ffn(config, kDim, kHidden, 0);
  EXPECT_EQ(ffn.named_buffers().keys(), std::vector<std::string>{"selection_bias"});
  EXPECT_EQ(ffn.named_parameters().size(), 5U);
}

// Biases can choose experts whose probabilities are 0 in fp32: the output is 0 then, not 0/0.
TEST(TopkFfn, GatesStayFiniteWhenBiasesChooseExpertsOfProbabilityZero) {
  FfnConfig config = config_of(3, 2);
  config.bias_balance = 0.1;
  TopkFfn ffn(config, 3, kHidden, 0);
  set_random_values(ffn, 3);
  const at::NoGradGuard no_grad;
  ffn.named_parameters()["router.weight"].copy_(300.0 * at::eye(3));
  ffn.named_buffers()["selection_bias"].copy_(at::tensor({0.0f, 5.0f, 5.0f}));
  const at::Tensor y = ffn.forward(at::eye(3).narrow(0, 0, 1).unsqueeze(0));
  EXPECT_TRUE(at::equal(y, at::zeros_like(y))) << y;
}

TEST(TopkFfn, UnderBf16TheRouterStaysInFp32) {
  FfnConfig config = config_of(4, 2);
  config.balance_loss = 1.0;
  TopkFfn ffn(config, kDim, kHidden, 0);
  set_random_values(ffn, 3);
  const at::Tensor x = random_values({kImages, kTokens, kDim}, 4);
  const at::Tensor exact = ffn.forward(x), loss = ffn.auxiliary_loss();
  at::Tensor rounded;
  {
    const Bf16Scope bf16;
    rounded = ffn.forward(x);
  }
  EXPECT_TRUE(at::equal(ffn.auxiliary_loss(), loss));
  EXPECT_FALSE(at::equal(rounded, exact));  // the experts' products are in bf16
  EXPECT_LT(largest_difference(rounded, exact), 0.02 * exact.abs().max().item<double>());
}

TEST(TopkFfn, CountsItsFlops) {
  const TopkFfn ffn(config_of(4, 2), kDim, kHidden, 0);
  EXPECT_EQ(ffn.forward_flops(10), 10.0 * (2 * 4 * 6 + 2 * (2 * 2 * 6 * 9)));
}

}  // namespace
}  // namespace exfusion
