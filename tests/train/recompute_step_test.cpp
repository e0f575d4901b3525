// train.recompute changes no bit of a training, whatever counts or draws in its forward pass.
#include <gtest/gtest.h>

#include "tiny_run.h"

namespace exfusion {
namespace {

const std::string kAugment = "data.augment={flip: 0.5, mixup: 0.2, smoothing: 0.1}";

struct Kind {
  const char* name;
  std::vector<std::string> sets;
};

void PrintTo(const Kind& kind, std::ostream* out) {
  *out << kind.name;
}

class Recompute : public ::testing::TestWithParam<Kind> {};

TEST_P(Recompute, LeavesEveryGradientAndTheStateAsTheyAre) {
  for (const char* precision : {"fp32", "bf16"}) {
    std::vector<std::string> sets = {kAugment, "model.drop_path=0.3", "train.micro_batch=8",
                                     std::string("train.precision=") + precision};
    sets.insert(sets.end(), GetParam().sets.begin(), GetParam().sets.end());
    TinyRun kept(sets);
    sets.emplace_back("train.recompute=true");
    TinyRun again(sets);
    for (int i = 0; i < 3; ++i) {
      const StepResult expected = kept.step(kept.batch(i)), found = again.step(again.batch(i));
      EXPECT_EQ(found.loss, expected.loss);
      EXPECT_EQ(found.grad_norm, expected.grad_norm);
      EXPECT_GT(expected.grad_norm, 0.0);
      for (const ParameterSlot& slot : kept.state.parameters->slots())
        EXPECT_TRUE(at::equal(again.state.model->named_parameters()[slot.name].grad(), slot.parameter.grad()))
            << precision << ", step " << i << ": " << slot.name;
    }
    expect_equal_bits(snapshot(again.state), snapshot(kept.state));
    for (const auto& item : kept.state.model->named_buffers())  // selection biases: loads were counted once
      EXPECT_TRUE(at::equal(again.state.model->named_buffers()[item.key()], item.value())) << item.key();
  }
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, Recompute,
    ::testing::Values(
        Kind{"dense", {}}, Kind{"learned", {"fusion={experts: 3, weights: learned, dirichlet: 1}"}},
        Kind{"memory", {"fusion={experts: 3, weights: memory, router_std: 1, momentum: 0.5}"}},
        Kind{"blend",
             {"fusion={experts: 3, weights: memory, forward: blend, router_std: 1}", "train.micro_batch=32"}},
        Kind{
            "routed",
            {"fusion={experts: 3, weights: memory, forward: routed, router_std: 1}", "train.micro_batch=32"}},
        Kind{"topk",
             {"model.ffn={name: topk, experts: 4, top_k: 2, capacity_factor: 1, z_loss: 0.01, bias_balance: "
              "0.01}"}},
        Kind{"smear", {"model.ffn={name: smear, experts: 3}"}},
        Kind{"ewa", {"model.ffn={name: ewa, experts: 3, layers: [1]}"}}),
    [](const auto& kind) { return std::string(kind.param.name); });

}  // namespace
}  // namespace exfusion
