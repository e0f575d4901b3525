// The bf16 copy of the weights is what they round to, whatever wrote them.
#include <gtest/gtest.h>

#include <limits>

#include "tiny_run.h"
#include "train/checkpoint.h"

namespace exfusion {
namespace {

void expect_copy(const TinyRun& run, const std::string& where) {
  const at::Tensor copy = run.state.parameters->bf16_values();
  ASSERT_TRUE(copy.defined()) << where;
  const at::Tensor expected = run.state.parameters->values().to(at::kBFloat16);
  EXPECT_TRUE(at::equal(copy.view(at::kShort), expected.view(at::kShort))) << where;
}

TEST(Bf16Copy, IsKeptInBf16Alone) {
  EXPECT_FALSE(TinyRun().state.parameters->bf16_values().defined());
}

TEST(Bf16Copy, FollowsEveryWriterOfTheWeights) {
  for (const std::string fusion :
       {"none", "{experts: 3, weights: static}", "{experts: 3, weights: static, expert_dropout: 0.7}",
        "{experts: 3, weights: static, materialize: false}", "{experts: 3, weights: learned, layers: last:1}",
        "{experts: 3, weights: learned, state: shared_moments}",
        "{experts: 3, weights: memory, router_std: 0.5, dirichlet: 2}",
        "{experts: 3, weights: memory, router_std: 0.5, forward: blend}",
        "{experts: 3, weights: memory, router_std: 0.5, forward: routed}"}) {
    const std::vector<std::string> sets = {"train.precision=bf16", "train.ema=0.9", "train.micro_batch=32",
                                           "fusion=" + fusion};
    TinyRun run(sets);
    expect_copy(run, fusion + " at the start");
    const at::Tensor start = run.state.parameters->bf16_values().clone();
    run.steps(3);
    expect_copy(run, fusion + " after steps");
    EXPECT_FALSE(at::equal(run.state.parameters->bf16_values(), start)) << fusion;

    Batch sick = run.batch(3);
    sick.images.fill_(std::numeric_limits<float>::quiet_NaN());
    EXPECT_TRUE(run.step(sick).skipped);
    expect_copy(run, fusion + " after a skipped step");

    const TestFolder folder;
    CheckpointInfo info;
    info.recipe = run.resolved;
    save_checkpoint(folder.path(), run.state, info);
    TinyRun restored(sets);
    load_checkpoint(folder / "step-00000004", restored.state);
    expect_copy(restored, fusion + " restored");

    for (ExpertBank& bank : restored.state.banks) bank.begin_preview(4);
    expect_copy(restored, fusion + " with the weights of training");
    for (ExpertBank& bank : restored.state.banks) bank.end_preview();
    expect_copy(restored, fusion + " collapsed again");
    restored.state.ema->swap();
    expect_copy(restored, fusion + " with the average");
    restored.state.ema->swap();
    restored.steps(1);
    expect_copy(restored, fusion + " going on");
  }
}

}  // namespace
}  // namespace exfusion
