#include "prune/checkpoint_prune.h"

#include <gtest/gtest.h>

#include "core/log.h"
#include "nn/block.h"
#include "nn/topk_ffn.h"
#include "train/export.h"
#include "train/tiny_run.h"

namespace exfusion {
namespace {

LoadedModel trained(const std::string& ffn) {
  TinyRun run({"model.ffn=" + ffn});
  run.steps(3);
  LoadedModel loaded;
  loaded.config = run.config.model;
  loaded.model = run.state.model;
  loaded.model->eval();
  loaded.mean = loaded.std = {0.5};
  loaded.test_accuracy = 0.5;
  loaded.origin = "here";
  return loaded;
}

at::Tensor logits(Model& model) {
  const at::NoGradGuard no_grad;
  return model.forward(at::linspace(-1, 1, 3 * 64).view({3, 1, 8, 8}), {});
}

// Of a model in which the experts that are not kept never win: their logits are -inf.
at::Tensor masked_logits(const LoadedModel& source, const KeptExperts& kept) {
  const auto blocks = find_blocks(*source.model);
  for (const auto& [block, experts] : kept) {
    const auto& one = blocks.at(static_cast<std::size_t>(block));
    auto& ffn = dynamic_cast<TopkFfn&>(*one->ffn());
    at::Tensor mask = at::full({ffn.config().experts}, -std::numeric_limits<float>::infinity());
    for (const std::int64_t expert : experts) mask[expert] = 0.0f;
    one->observe_ffn([&ffn, mask](const at::Tensor& x, const at::Tensor&) {
      const at::Tensor rows = x.reshape({-1, x.size(-1)});
      return ffn.combine(rows, ffn.route(ffn.router_logits(rows) + mask)).view(x.sizes());
    });
  }
  const at::Tensor masked = logits(*source.model);
  for (const auto& block : blocks) block->observe_ffn(nullptr);
  return masked;
}

TEST(CheckpointPrune, LogitsAreThoseOfAModelInWhichTheOthersAreMasked) {
  const KeptExperts kept = {{0, {0, 2}}, {1, {3, 4}}};
  for (const char* ffn :
       {"{name: topk, experts: 5}", "{name: topk, experts: 5, renormalize: false}",
        "{name: topk, experts: 5, top_k: 1}", "{name: topk, experts: 5, bias_balance: 0.05}"}) {
    const LoadedModel source = trained(ffn);
    const LoadedModel smaller = pruned(source, kept, "pruned");
    EXPECT_EQ(smaller.config.vit.ffn.experts, 2);
    EXPECT_LT(largest_difference(logits(*smaller.model), masked_logits(source, kept)), 1e-5) << ffn;
    EXPECT_GT(largest_difference(logits(*smaller.model), logits(*source.model)), 1e-4) << ffn;
  }
}

TEST(CheckpointPrune, TheExportReadsBackAndClaimsNoAccuracy) {
  log_set_quiet(true);
  const TestFolder folder;
  const LoadedModel smaller =
      pruned(trained("{name: topk, experts: 4}"), {{0, {1, 2, 3}}, {1, {0, 1, 3}}}, "pruned by man");
  export_moe(smaller, folder / "half", false);
  EXPECT_TRUE(at::equal(logits(*load_model(folder / "half", "last").model), logits(*smaller.model)));
  EXPECT_FALSE(smaller.test_accuracy.has_value());
}

TEST(CheckpointPrune, BlocksAreThoseWithExpertsAndOtherModelsAreRefused) {
  EXPECT_EQ(topk_blocks(trained("{name: topk, experts: 3, layers: last:1}")), (std::vector<std::int64_t>{1}));
  EXPECT_THROW(topk_blocks(trained("{name: smear, experts: 3}")), CheckpointError);
}

TEST(CheckpointPrune, WeightScoresAreOfTheExpertsOwnTensors) {
  const LoadedModel source = trained("{name: topk, experts: 3}");
  const auto parameters = source.model->named_parameters();
  const ScoresByLayer norms = weight_scores(source, "weight_norm"),
                      rows = weight_scores(source, "router_norm");
  for (std::int64_t block = 0; block < 2; ++block) {
    const std::string name = "blocks." + std::to_string(block) + ".mlp.";
    for (std::int64_t e = 0; e < 3; ++e) {
      const auto norm = [&](const char* tensor) {
        return parameters[name + tensor][e].to(at::kDouble).norm().item<double>();
      };
      EXPECT_NEAR(norms.at(block)[static_cast<std::size_t>(e)],
                  std::hypot(norm("experts.fc1.weight"), norm("experts.fc2.weight")), 1e-9);
      EXPECT_NEAR(rows.at(block)[static_cast<std::size_t>(e)], norm("router.weight"), 1e-9);
    }
  }
}

}  // namespace
}  // namespace exfusion
