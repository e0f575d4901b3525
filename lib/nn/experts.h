// What the feed-forward networks with experts inside the model are made of: the experts' parameters and a
// router.
#pragma once
#include <torch/nn/module.h>

#include <cstdint>
#include <vector>

#include "nn/feed_forward.h"

namespace exfusion {

// N FFNs of one shape in stacked parameters: fc1.weight [experts, hidden, dim], fc1.bias [experts, hidden],
// fc2.weight [experts, dim, hidden], fc2.bias [experts, dim].
class Experts : public torch::nn::Module {
 public:
  Experts(std::int64_t experts, std::int64_t dim, std::int64_t hidden);
  // Expert k starts as draw k of this FFN (initial_ffn).
  void draw_parameters(std::uint64_t seed, std::int64_t ffn);
  // rows [n, dim], those of expert 0 first, counts[k] of them for expert k -> [n, dim]; 0 for the rows
  // behind. An expert without rows gets a gradient of 0.
  at::Tensor forward(const at::Tensor& rows, const std::vector<std::int64_t>& counts) const;
  FfnTensors mean() const;
  std::int64_t size() const { return tensors[0].size(0); }
  double ffn_flops() const;  // matrix-multiply FLOPs of one token in one expert

  FfnTensors tensors;  // in the order of kFfnTensors, each with a leading [experts]
};

// Linear scores of experts, without bias: weight [experts, dim], initially normal with std 0.02. Always in
// fp32, as routers are (Fedus et al. 2022, 2.4): small differences of its scores decide.
class Router : public torch::nn::Module {
 public:
  Router(std::int64_t experts, std::int64_t dim);
  void draw_parameters(std::uint64_t seed, std::int64_t ffn);
  at::Tensor forward(const at::Tensor& x) const;  // [..., dim] -> [..., experts] fp32
  double token_flops() const { return 2.0 * static_cast<double>(weight.numel()); }

  at::Tensor weight;
};

}  // namespace exfusion
