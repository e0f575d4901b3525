#include "prune/checkpoint_prune.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <array>
#include <map>

#include "core/error.h"
#include "prune/weight_scores.h"

namespace exfusion {
namespace {

// Each has a first dimension of experts.
constexpr std::array<const char*, 6> kExpertTensors = {"router.weight",      "selection_bias",
                                                       "experts.fc1.weight", "experts.fc1.bias",
                                                       "experts.fc2.weight", "experts.fc2.bias"};

std::string tensor_name(std::int64_t block, const char* tensor) {
  return fmt::format("blocks.{}.mlp.{}", block, tensor);
}

std::map<std::string, at::Tensor> tensors_by_name(const Model& model) {
  const NamedTensors tensors = model_tensors(model);
  return {tensors.begin(), tensors.end()};
}

}  // namespace

std::vector<std::int64_t> topk_blocks(const LoadedModel& model) {
  const ViTConfig& vit = model.config.vit;
  if (vit.ffn.name != "topk")
    throw CheckpointError(fmt::format("{}: its FFNs are {}; only experts of model.ffn: topk can be pruned",
                                      model.origin.string(), vit.ffn.name));
  std::vector<std::int64_t> blocks;
  const std::vector<bool> chosen = vit.ffn.chosen_blocks(vit.depth);
  for (std::size_t block = 0; block < chosen.size(); ++block) {
    if (chosen[block]) blocks.push_back(static_cast<std::int64_t>(block));
  }
  return blocks;
}

ScoresByLayer weight_scores(const LoadedModel& model, const std::string& score) {
  const at::NoGradGuard no_grad;
  const std::map<std::string, at::Tensor> tensors = tensors_by_name(*model.model);
  const std::vector<const char*> names =
      scores_router(score) ? std::vector<const char*>{"router.weight"}
                           : std::vector<const char*>{"experts.fc1.weight", "experts.fc2.weight"};
  ScoresByLayer scores;
  for (const std::int64_t block : topk_blocks(model)) {
    for (std::int64_t e = 0; e < model.config.vit.ffn.experts; ++e) {
      WeightSums sums;
      for (const char* name : names) sums.add(tensors.at(tensor_name(block, name))[e].detach());
      scores[block].push_back(
          weight_score(score, sums, fmt::format("{}: block {}, expert {}", model.origin.string(), block, e)));
    }
  }
  return scores;
}

LoadedModel pruned(const LoadedModel& model, const KeptExperts& kept, const std::string& what) {
  const at::NoGradGuard no_grad;
  LoadedModel smaller = model;
  smaller.config.vit.ffn.experts = static_cast<std::int64_t>(kept.begin()->second.size());
  smaller.model = make_model(smaller.config, 0);
  smaller.model->eval();
  smaller.what = what;
  smaller.test_accuracy.reset();  // that of another model
  std::map<std::string, at::Tensor> source = tensors_by_name(*model.model);
  for (const auto& [block, experts] : kept) {
    for (const char* name : kExpertTensors) {
      const auto found = source.find(tensor_name(block, name));
      if (found != source.end())
        found->second = found->second.index_select(0, at::tensor(experts, at::kLong));
    }
  }
  for (const auto& [name, target] : model_tensors(*smaller.model)) {
    at::Tensor values = target;
    values.copy_(source.at(name));
  }
  return smaller;
}

}  // namespace exfusion
