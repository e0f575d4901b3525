// Static experts that are not kept, against those that are, through the whole step.
#include "fusion/collapsed_static.h"

#include <gtest/gtest.h>

#include "io/safetensors.h"
#include "nn/ffn.h"
#include "tiny_run.h"
#include "train/checkpoint.h"
#include "train/export.h"

namespace exfusion {
namespace {

// An eps that matters, clipping and decay.
std::vector<std::string> sets(const std::string& more, const std::string& init = "independent") {
  return {"optim.eps=1e-3", "optim.weight_decay=0.2", "train.clip=0.5", "model.drop_path=0.1",
          "fusion={experts: 3, weights: static, init: " + init + more + "}"};
}

TEST(CollapsedStatic, TrainsAsTheExpertsWould) {
  for (const std::string init : {"independent", "independent_scaled", "copy_noise, noise: 0.5", "drop"}) {
    TinyRun kept(sets("", init)), collapsed(sets(", materialize: false", init));
    EXPECT_TRUE(collapsed.state.banks.empty());
    for (const auto& item : kept.state.model->named_parameters())
      EXPECT_TRUE(at::equal(collapsed.parameter(item.key()), item.value().detach())) << init << item.key();
    for (int i = 0; i < 6; ++i) {
      const double expected = kept.step(kept.batch(i)).loss;
      EXPECT_NEAR(collapsed.step(collapsed.batch(i)).loss, expected, 1e-5 * expected) << init;
    }
    const std::vector<NamedFfn> ffns = find_ffns(*collapsed.state.model);
    ASSERT_EQ(ffns.size(), 2u);
    for (std::size_t i = 0; i < 2; ++i) {
      const FfnTensors trained = ffns[i].ffn->parameters_in_order();
      const FfnTensors experts = recovered_experts(*collapsed.config.fusion, trained, collapsed.config.seed,
                                                   ffns[i].index, collapsed.state.decay_product);
      for (std::size_t t = 0; t < 4; ++t) {
        const at::Tensor expected = kept.state.banks[i].expert_tensors()[t];
        EXPECT_LE(largest_difference(trained[t].detach(), expected.mean(0)), 2e-5) << init << t;
        EXPECT_LE(largest_difference(experts[t], expected), 2e-5) << init << t;
      }
      EXPECT_GT(largest_difference(experts[0][0], kept.state.banks[i].initial_tensors(0)[0]), 1e-3) << init;
    }
  }
}

TEST(CollapsedStatic, WithTheEpsOfOneExpertWouldBeAnotherTraining) {
  TinyRun kept(sets(""));
  auto without = sets("");
  without.back() = "fusion=none";
  TinyRun dense(without);
  {
    const at::NoGradGuard no_grad;
    for (const auto& item : dense.state.model->named_parameters())
      item.value().copy_(kept.parameter(item.key()));
  }
  kept.steps(6);
  dense.steps(6);
  EXPECT_GT(largest_difference(dense.parameter("blocks.0.mlp.fc1.weight"),
                               kept.parameter("blocks.0.mlp.fc1.weight")),
            1e-3);
}

TEST(CollapsedStatic, AnExportWritesTheExpertsOfTheCheckpoint) {
  const TestFolder folder;
  TinyRun run(sets(", layers: last:1, materialize: false")), kept(sets(", layers: last:1"));
  run.steps(4);
  kept.steps(4);
  std::filesystem::create_directories(folder / "checkpoints");
  std::filesystem::create_directories(folder / "kept");
  CheckpointInfo info;
  info.recipe = run.resolved;
  save_checkpoint(folder / "checkpoints", run.state, info);
  EXPECT_FALSE(std::filesystem::exists(folder / "checkpoints/latest/experts.safetensors"));
  export_experts(load_model(folder.path(), "last"), folder / "out", false);
  const SafetensorsFile file((folder / "out/experts.safetensors").string());
  ASSERT_EQ(file.tensors().size(), 5u);
  for (const auto& [name, tensor] : kept.state.banks.at(0).expert_state())
    EXPECT_LE(largest_difference(file.read(name), tensor), 2e-5) << name;
  EXPECT_TRUE(std::filesystem::exists(folder / "out/model.safetensors"));

  info.recipe = kept.resolved;
  save_checkpoint(folder / "kept", kept.state, info);
  expect_error<CheckpointError>(
      [&] { export_experts(load_model(folder / "kept/step-00000004", "last"), folder / "other", false); },
      {"fusion.materialize: false", "experts.safetensors"});
}

}  // namespace
}  // namespace exfusion
