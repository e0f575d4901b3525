// Small top-k models, made-up images, and what enters each FFN on them.
#pragma once
#include <gtest/gtest.h>

#include <vector>

#include "models/model.h"
#include "nn/slow_ffn.h"
#include "nn/topk_ffn.h"
#include "observe/held_out.h"
#include "observe/observed_blocks.h"

namespace exfusion {

constexpr std::int64_t kClasses = 3;

inline ModelConfig topk_config(std::int64_t experts, std::int64_t top_k) {
  ModelConfig config;
  config.arch = "vit";
  config.vit.dim = 12;
  config.vit.depth = 2;
  config.vit.heads = 2;
  config.vit.hidden = 20;
  config.vit.patch = 4;
  config.vit.image = 8;
  config.vit.classes = kClasses;
  config.vit.ffn.name = "topk";
  config.vit.ffn.experts = experts;
  config.vit.ffn.top_k = top_k;
  return config;
}

inline std::shared_ptr<Model> topk_model(const ModelConfig& config, std::uint64_t seed = 1) {
  const std::shared_ptr<Model> model = make_model(config, seed);
  set_random_values(*model, seed);
  return model;
}

// Batches of these sizes; labels 0, 1, 2, 0, ...
inline std::vector<HeldOutBatch> random_batches(const std::vector<std::int64_t>& sizes) {
  std::vector<HeldOutBatch> batches;
  std::int64_t first = 0;
  for (const std::int64_t size : sizes) {
    batches.push_back({random_values({size, 3, 8, 8}, 100 + static_cast<std::uint64_t>(first)),
                       at::arange(first, first + size, at::kLong).remainder(kClasses)});
    first += size;
  }
  return batches;
}

inline std::shared_ptr<TopkFfn> topk_ffn(const torch::nn::Module& model, std::size_t block) {
  return std::dynamic_pointer_cast<TopkFfn>(find_blocks(model).at(block)->ffn());
}

// Of one block and batch, [n, tokens, dim].
struct FfnPass {
  at::Tensor x, stream, y;
};

// [batch][block]
inline std::vector<std::vector<FfnPass>> ffn_passes(Model& model, const std::vector<HeldOutBatch>& batches) {
  const at::NoGradGuard no_grad;
  const ObservedBlocks observed(model);
  std::vector<std::vector<FfnPass>> passes;
  for (const HeldOutBatch& batch : batches) {
    passes.emplace_back();
    for (const auto& block : observed.blocks()) {
      block->observe_ffn([&passes, &ffn = *block->ffn()](const at::Tensor& x, const at::Tensor& stream) {
        passes.back().push_back({x, stream, ffn.forward(x)});
        return passes.back().back().y;
      });
    }
    model.forward(batch.images, {});
  }
  return passes;
}

// All experts of a layer become copies of the first.
inline void copy_first_expert(TopkFfn& ffn) {
  const at::NoGradGuard no_grad;
  for (const at::Tensor& tensor : ffn.experts().tensors)
    tensor.copy_(tensor.select(0, 0).clone().expand_as(tensor));
}

}  // namespace exfusion
