#include "nn/ewa_ffn.h"

#include <gtest/gtest.h>

#include <cmath>

#include "bf16_scope.h"
#include "nn/dispatch.h"
#include "nn/ffn.h"
#include "slow_ffn.h"

namespace exfusion {
namespace {

FfnConfig ewa_config(double share_rate = 0.3) {
  FfnConfig config;
  config.name = "ewa";
  config.experts = kExperts;
  config.share_rate = share_rate;
  return config;
}

// Which expert each token goes to, by the definition of the draw.
std::vector<std::int64_t> experts_of_tokens(const PassPosition& at, std::int64_t ffn, std::int64_t tokens) {
  const auto order = random_permutation(
      tokens, CounterRandom(at.seed, Draw::token_partition, static_cast<std::uint32_t>(at.step), 0,
                            static_cast<std::uint32_t>(ffn)));
  std::vector<std::int64_t> expert(order.size());
  for (std::size_t place = 0; place < order.size(); ++place) {
    std::int64_t k = 0;  // the part [k n / N, (k + 1) n / N) that the place is in
    while (static_cast<std::int64_t>(place) >= (k + 1) * tokens / kExperts) ++k;
    expert[static_cast<std::size_t>(order[place])] = k;
  }
  return expert;
}

TEST(EwaFfn, OutputAndGradientsAreThoseOfALoopInDoublePrecision) {
  EwaFfn ffn(ewa_config(), kDim, kHidden, 5);
  set_random_values(ffn, 3);
  const SlowTensors slow_tensors = slow_copies(ffn);
  const at::Tensor x = random_values({kImages, kTokens, kDim}, 4).set_requires_grad(true);
  const at::Tensor slow_x = x.detach().to(at::kDouble).set_requires_grad(true);
  const at::Tensor weight = random_values({kImages, kTokens, kDim}, 5);
  const PassPosition position{11, 7, 2};
  ffn.begin_pass(position);
  const at::Tensor y = ffn.forward(x);
  const auto expert = experts_of_tokens(position, 5, kImages * kTokens);
  std::vector<at::Tensor> outputs;
  for (std::size_t i = 0; i < expert.size(); ++i)
    outputs.push_back(
        slow_expert(slow_tensors, expert[i], slow_x.view({-1, kDim})[static_cast<std::int64_t>(i)]));
  const at::Tensor expected = at::stack(outputs).view(x.sizes());
  EXPECT_LT(largest_difference(y, expected), 2e-5);
  (y * weight).sum().backward();
  (expected * weight.to(at::kDouble)).sum().backward();
  expect_same_gradients(ffn, x, slow_tensors, slow_x, 1e-4);
}

TEST(EwaFfn, PassesOverPartsOfABatchUseThePartitionOfTheWhole) {
  const at::Tensor x = random_values({kImages, kTokens, kDim}, 4);
  EwaFfn ffn(ewa_config(), kDim, kHidden, 5);
  set_random_values(ffn, 3);
  ffn.begin_pass({.seed = 11, .step = 7});
  const at::Tensor whole = ffn.forward(x);
  ffn.begin_pass({.seed = 11, .step = 7, .micro_batch = 1, .row = 1, .all_rows = kImages});
  EXPECT_LT(largest_difference(ffn.forward(x.narrow(0, 1, kImages - 1)), whole.narrow(0, 1, kImages - 1)),
            1e-6);
}

TEST(EwaFfn, ThePartitionIsAFunctionOfSeedStepAndBlock) {
  const at::Tensor x = random_values({kImages, kTokens, kDim}, 4);
  const auto output = [&](const PassPosition& position, std::int64_t number) {
    EwaFfn ffn(ewa_config(), kDim, kHidden, number);
    set_random_values(ffn, 3);
    ffn.begin_pass({99, 99, 99});
    ffn.forward(x);  // what came before does not matter
    ffn.begin_pass(position);
    return ffn.forward(x);
  };
  const at::Tensor one = output({1, 2, 3}, 4);
  EXPECT_TRUE(at::equal(output({1, 2, 3}, 4), one));
  EXPECT_FALSE(at::equal(output({2, 2, 3}, 4), one));
  EXPECT_FALSE(at::equal(output({1, 3, 3}, 4), one));
  EXPECT_TRUE(at::equal(output({1, 2, 4}, 4), one));  // not of the micro-batch
  EXPECT_FALSE(at::equal(output({1, 2, 3}, 5), one));
}

TEST(EwaFfn, FewerTokensThanExpertsLeaveAGradientOfZero) {
  EwaFfn ffn(ewa_config(), kDim, kHidden, 0);
  set_random_values(ffn, 3);
  ffn.forward(random_values({1, 2, kDim}, 4)).sum().backward();
  const at::Tensor gradient = ffn.named_parameters()["experts.fc2.bias"].grad();
  EXPECT_EQ(gradient.abs().sum(1).ne(0).sum().item<std::int64_t>(), 2);
  EXPECT_TRUE(gradient.isfinite().all().item<bool>());
}

TEST(EwaFfn, AfterAnUpdateExpertsShareAsTheFormulaSaysWithALinearRamp) {
  for (const double progress : {0.25, 0.5, 1.0}) {
    EwaFfn ffn(ewa_config(0.6), kDim, kHidden, 0);
    set_random_values(ffn, 3);
    const SlowTensors before = slow_copies(ffn);
    ffn.after_update(progress);
    const double beta = 0.6 * progress;
    for (const auto& item : ffn.named_parameters()) {
      const at::Tensor& w = before.at(item.key());
      for (std::int64_t i = 0; i < kExperts; ++i) {
        at::Tensor others = at::zeros_like(w[0]);
        for (std::int64_t j = 0; j < kExperts; ++j) {
          if (j != i) others = others + w[j];
        }
        const at::Tensor expected = (1.0 - beta) * w[i] + beta / (kExperts - 1.0) * others;
        EXPECT_LT(largest_difference(item.value()[i], expected), 3e-7) << item.key() << " " << progress;
      }
    }
  }
}

// beta = 1 - 1/N makes every expert the mean; two experts with beta = 1 change places.
TEST(EwaFfn, SharingHasItsClosedFormsAtTheEnds) {
  EwaFfn ffn(ewa_config(0.75), kDim, kHidden, 0);
  set_random_values(ffn, 3);
  const FfnTensors mean = *ffn.dense_form();
  ffn.after_update(1.0);
  const at::Tensor w = ffn.named_parameters()["experts.fc1.weight"];
  for (std::int64_t i = 0; i < kExperts; ++i) EXPECT_LT(largest_difference(w[i], mean[0]), 2e-7);

  FfnConfig two = ewa_config(1.0);
  two.experts = 2;
  EwaFfn pair(two, kDim, kHidden, 0);
  set_random_values(pair, 3);
  const at::Tensor before = pair.named_parameters()["experts.fc1.weight"].detach().clone();
  pair.after_update(1.0);
  EXPECT_LT(largest_difference(pair.named_parameters()["experts.fc1.weight"], before.flip(0)), 2e-7);
}

TEST(EwaFfn, SharingNothingOrAloneChangesNothing) {
  for (const std::int64_t experts : {1, 4}) {
    FfnConfig config = ewa_config(experts == 1 ? 0.5 : 0.0);
    config.experts = experts;
    EwaFfn ffn(config, kDim, kHidden, 0);
    set_random_values(ffn, 3);
    const at::Tensor before = ffn.named_parameters()["experts.fc1.weight"].detach().clone();
    ffn.after_update(1.0);
    EXPECT_TRUE(at::equal(ffn.named_parameters()["experts.fc1.weight"], before));
  }
}

TEST(EwaFfn, InEvaluationItIsTheDenseFfnOfTheMeanBitForBit) {
  EwaFfn ffn(ewa_config(), kDim, kHidden, 0);
  set_random_values(ffn, 3);
  ffn.eval();
  const at::NoGradGuard no_grad;
  const at::Tensor x = random_values({kImages, kTokens, kDim}, 4);
  Ffn dense(kDim, kHidden);
  const FfnTensors form = *ffn.dense_form();
  for (std::size_t t = 0; t < form.size(); ++t) dense.parameters_in_order()[t].copy_(form[t]);
  EXPECT_TRUE(at::equal(ffn.forward(x), dense.forward(x)));
  const SlowTensors slow = slow_copies(ffn);
  EXPECT_LT(largest_difference(form[0], slow.at("experts.fc1.weight").mean(0)), 1e-7);
  const Bf16Scope bf16;
  EXPECT_TRUE(at::equal(ffn.forward(x), dense.forward(x)));
}

TEST(EwaFfn, ExpertsStartFromTheDrawsOfTheirNumbers) {
  EwaFfn ffn(ewa_config(), kDim, kHidden, 2);
  ffn.draw_parameters(7, 2);
  for (std::int64_t k = 0; k < kExperts; ++k) {
    const FfnTensors values = initial_ffn(kDim, kHidden, 7, 2, k);
    for (std::size_t t = 0; t < values.size(); ++t)
      EXPECT_TRUE(at::equal(ffn.named_parameters()[std::string("experts.") + kFfnTensors[t]][k], values[t]));
  }
}

TEST(EwaFfn, CostsWhatADenseFfnCosts) {
  const EwaFfn ffn(ewa_config(), kDim, kHidden, 0);
  const Ffn dense(kDim, kHidden);
  EXPECT_EQ(ffn.forward_flops(10), dense.forward_flops(10));
  EXPECT_EQ(dense.forward_flops(10), 10.0 * 2 * 2 * 6 * 9);
}

}  // namespace
}  // namespace exfusion
