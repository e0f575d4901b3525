#include "train/step.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tiny_run.h"
#include "train/precision.h"

namespace exfusion {
namespace {

const std::vector<std::string> kAugmented = {
    "data.augment={flip: 0.5, crop: 1, erase: 0.5, mixup: 0.4, cutmix: 1.0, smoothing: 0.1}",
    "model.drop_path=0.3"};

std::vector<std::string> with(std::vector<std::string> sets, const std::vector<std::string>& more) {
  sets.insert(sets.end(), more.begin(), more.end());
  return sets;
}

TEST(TrainStep, MicroBatchesGiveTheGradientsOfTheWholeBatch) {
  TinyRun whole(with(kAugmented, {"train.micro_batch=32"})),
      parts(with(kAugmented, {"train.micro_batch=16"}));
  TinyRun uneven(with(kAugmented, {"train.micro_batch=5"}));
  const Batch batch = whole.batch(0);
  const double loss = whole.step(batch).loss;
  const at::Tensor expected = whole.state.parameters->gradients();
  const double largest = expected.abs().max().item<double>();
  ASSERT_GT(largest, 1e-3);
  for (TinyRun* run : {&parts, &uneven}) {
    EXPECT_NEAR(run->step(run->batch(0)).loss, loss, 1e-6 * loss);
    EXPECT_LE(largest_difference(run->state.parameters->gradients(), expected), 1e-6 * largest);
  }
}

TEST(TrainStep, TheLossIsTheMeanCrossEntropyOfSoftTargets) {
  TinyRun run(with(kAugmented, {"model.drop_path=0"}));
  const Batch batch = run.batch(0);
  at::Tensor expected;
  {
    const at::NoGradGuard no_grad;
    const at::Tensor logits = run.state.model->forward(batch.images, {}).to(at::kDouble);
    expected = -(batch.targets.to(at::kDouble) * at::log_softmax(logits, 1)).sum(1).mean();
  }
  EXPECT_NEAR(run.step(batch).loss, expected.item<double>(), 1e-6);
}

TEST(TrainStep, TheGradientNormIsThatOfAllParametersBeforeClipping) {
  for (const auto& sets :
       {std::vector<std::string>{"train.clip=0.01"}, with(kLearned, {"train.clip=0.01"})}) {
    TinyRun run(sets);
    const StepResult result = run.step(run.batch(0));
    double sum = 0.0;
    for (const auto& parameter : run.state.model->parameters())
      sum += parameter.grad().to(at::kDouble).pow(2).sum().item<double>();
    EXPECT_NEAR(result.grad_norm, std::sqrt(sum), 1e-12 * std::sqrt(sum));
    EXPECT_GT(result.grad_norm, 0.01);
  }
}

// PyTorch's AdamW in double precision, given the clipped gradients of the same steps.
class ReferenceAdamW {
 public:
  explicit ReferenceAdamW(const TinyRun& run) {
    for (const ParameterSlot& slot : run.state.parameters->slots()) {
      Group& group = groups_[slot.decay ? 0 : 1];
      group.w.push_back(slot.parameter.detach().to(at::kDouble));
      group.m.push_back(at::zeros_like(group.w.back()));
      group.v.push_back(at::zeros_like(group.w.back()));
      group.steps.push_back(at::zeros({}, at::kFloat));
    }
  }
  void step(const TinyRun& run, double lr, double factor) {
    const AdamWConfig& optim = run.config.optim;
    for (const bool decay : {true, false}) {
      Group& group = groups_[decay ? 0 : 1];
      std::vector<at::Tensor> gradients;
      for (const ParameterSlot& slot : run.state.parameters->slots()) {
        if (slot.decay == decay) gradients.push_back(slot.parameter.grad().to(at::kDouble) * factor);
      }
      for (at::Tensor& count : group.steps) count.add_(1);
      at::_fused_adamw_(group.w, gradients, group.m, group.v, {}, group.steps, lr, optim.beta1, optim.beta2,
                        decay ? optim.weight_decay : 0.0, optim.eps, false, false);
    }
  }
  double largest_error(const TinyRun& run) const {
    double largest = 0.0;
    std::size_t next[2] = {0, 0};
    for (const ParameterSlot& slot : run.state.parameters->slots()) {
      const std::size_t group = slot.decay ? 0 : 1;
      largest =
          std::max(largest, largest_difference(slot.parameter.detach(), groups_[group].w[next[group]++]));
    }
    return largest;
  }

 private:
  struct Group {
    std::vector<at::Tensor> w, m, v, steps;
  };
  Group groups_[2];
};

TEST(TrainStep, UpdatesAsAdamwOfPytorchOnClippedGradients) {
  TinyRun run({"train.clip=0.05", "optim={lr: 0.01, weight_decay: 0.3, betas: [0.8, 0.95], eps: 1e-6}",
               "optim.schedule={name: cosine, warmup_steps: 2}"});
  ReferenceAdamW reference(run);
  const at::Tensor before = run.state.parameters->values().clone();
  for (int i = 0; i < 4; ++i) {
    const StepResult result = run.step(run.batch(i));
    ASSERT_GT(result.grad_norm, 0.05);
    reference.step(run, result.lr, 0.05 / (result.grad_norm + 1e-6));
  }
  EXPECT_GT(largest_difference(run.state.parameters->values(), before), 0.01);
  EXPECT_LE(reference.largest_error(run), 1e-6);
}

TEST(TrainStep, AGradientBelowTheBoundIsNotScaled) {
  TinyRun bounded({"train.clip=1e6"}), free({"train.clip=0"});
  bounded.steps(2);
  free.steps(2);
  expect_equal_bits(snapshot(bounded.state), snapshot(free.state));
}

TEST(TrainStep, TheLearningRateFollowsTheSchedule) {
  TinyRun run({"optim.schedule={name: linear, warmup_steps: 2}", "optim.lr=0.3"});
  const double expected[] = {0.1,   0.2,  0.3,
                             0.225, 0.15, 0.075};  // (step + 1) / 3, then 1 - p over four steps
  for (int i = 0; i < 6; ++i) EXPECT_NEAR(run.step(run.batch(i)).lr, expected[i], 1e-15);
}

// Batches that end in a loss or a gradient that is not finite.
std::vector<Batch> sick_batches(const TinyRun& run) {
  std::vector<Batch> batches;
  for (int kind = 0; kind < 3; ++kind) {
    Batch batch = run.batch(1);
    if (kind == 0) batch.images[31][0][3][3] = std::numeric_limits<float>::quiet_NaN();  // last micro-batch
    if (kind == 1) batch.images[0][0][0][0] = std::numeric_limits<float>::infinity();
    if (kind == 2) batch.targets[5][1] = std::numeric_limits<float>::infinity();
    batches.push_back(std::move(batch));
  }
  return batches;
}

TEST(TrainStep, ABatchThatIsNotFiniteChangesNothingButTheCounts) {
  for (const auto& sets : {std::vector<std::string>{"train.ema=0.9"}, with(kLearned, {"train.ema=0.9"})}) {
    TinyRun run(sets);
    run.steps(1);
    const auto before = snapshot(run.state);
    std::int64_t in_row = 0;
    for (const Batch& batch : sick_batches(run)) {
      const StepResult result = run.step(batch);
      EXPECT_TRUE(result.skipped);
      EXPECT_FALSE(std::isfinite(result.loss) && std::isfinite(result.grad_norm));
      expect_equal_bits(snapshot(run.state), before);
      EXPECT_EQ(run.state.skipped_in_row, ++in_row);
      EXPECT_EQ(run.state.skipped, in_row);
      EXPECT_EQ(run.state.step, 1 + in_row);
      EXPECT_EQ(run.state.updates, 1);
    }
    EXPECT_FALSE(run.step(run.batch(1)).skipped);
    EXPECT_EQ(run.state.skipped_in_row, 0);
    EXPECT_EQ(run.state.skipped, 3);
    EXPECT_EQ(run.state.updates, 2);
  }
}

TEST(TrainStep, AGradientThatIsNotFiniteUnderAFiniteLossIsSkippedToo) {
  TinyRun run(kLearned);
  run.steps(1);
  const auto before = snapshot(run.state);
  at::Tensor bias = run.state.model->named_parameters()["blocks.1.mlp.fc2.bias"];
  const unsigned hook =
      bias.register_hook([](const at::Tensor& gradient) { return gradient / at::zeros_like(gradient); });
  const StepResult result = run.step(run.batch(1));
  bias.remove_hook(hook);
  EXPECT_TRUE(result.skipped);
  EXPECT_TRUE(std::isfinite(result.loss));
  expect_equal_bits(snapshot(run.state), before);
  EXPECT_FALSE(run.step(run.batch(1)).skipped);
}

// The bias correction counts updates: with a constant schedule the skipped steps leave no trace.
TEST(TrainStep, TrainingGoesOnAfterSkippedStepsAsIfTheyHadNotBeen) {
  TinyRun straight(kLearned), skipping(kLearned);
  straight.step(straight.batch(0));
  straight.step(straight.batch(1));
  skipping.step(skipping.batch(0));
  for (const Batch& batch : sick_batches(skipping)) skipping.step(batch);
  skipping.step(skipping.batch(1));
  expect_equal_bits(snapshot(skipping.state), snapshot(straight.state));
}

TEST(TrainStep, IsTheSameInEveryBitWhenRepeated) {
  const auto sets = with(kAugmented, with(kLearned, {"train.ema=0.9"}));
  TinyRun first(sets), second(sets);
  first.steps(3);
  second.steps(3);
  expect_equal_bits(snapshot(first.state), snapshot(second.state));
}

TEST(TrainStep, Bf16IsCloseToFp32AndLeavesTheStateInFp32) {
  TinyRun half({"train.precision=bf16"}), full;
  const StepResult found = half.step(half.batch(0)), expected = full.step(full.batch(0));
  EXPECT_NE(found.loss, expected.loss);
  EXPECT_NEAR(found.loss, expected.loss, 0.01 * expected.loss);
  EXPECT_NEAR(found.grad_norm, expected.grad_norm, 0.05 * expected.grad_norm);
  for (const auto& [name, tensor] : snapshot(half.state)) EXPECT_EQ(tensor.scalar_type(), at::kFloat) << name;
}

TEST(PrecisionScope, SwitchesAutocastOnAndBack) {
  const at::Tensor x = at::ones({4, 4});
  {
    const PrecisionScope outer("bf16");
    EXPECT_EQ(at::mm(x, x).scalar_type(), at::kBFloat16);
    { const PrecisionScope inner("bf16"); }
    EXPECT_EQ(at::mm(x, x).scalar_type(), at::kBFloat16);
  }
  const PrecisionScope scope("fp32");
  EXPECT_EQ(at::mm(x, x).scalar_type(), at::kFloat);
}

}  // namespace
}  // namespace exfusion
