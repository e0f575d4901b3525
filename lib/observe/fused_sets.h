// The fused sets of a model as plain tensors, for analyses.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "fusion/expert_bank.h"
#include "nn/feed_forward.h"

namespace exfusion {

// The N experts of one FFN and the weights that fuse them.
struct FusedSet {
  std::string name;        // "blocks.0.mlp"
  std::int64_t block = 0;  // among the model's blocks (nn/block.h)
  FfnTensors experts;     // [N, …] fp32 on the CPU, in the order of kFfnTensors; undefined where only parts
                          // of them are here (dist.shard)
  std::vector<double> a;  // [N] collapse weights
  std::int64_t size() const { return static_cast<std::int64_t>(a.size()); }
  bool whole() const { return experts[0].defined(); }
  FfnTensors expert(std::int64_t k) const;  // views
};

// One per bank, in their order. The experts are views where they are on the CPU.
std::vector<FusedSet> fused_sets(const torch::nn::Module& model, const std::deque<ExpertBank>& banks);

// W = sum_k a_k W_k.
FfnTensors fused_tensors(const FusedSet& set);

// [N, …]: D_k = W_k - W. An expert whose D_k is a rounding error of W in all four tensors has exactly 0, so
// that equal experts show no differences.
FfnTensors offsets(const FusedSet& set);

// [N] |D_k| over all four tensors.
std::vector<double> offset_norms(const FfnTensors& offsets);

}  // namespace exfusion
