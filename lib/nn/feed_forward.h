// What may stand at a block's feed-forward position: the dense FFN (nn/ffn.h) or one of the baselines that
// keep their experts inside the model (topk_ffn.h, smear_ffn.h, ewa_ffn.h). Fusion is none of these: it lives
// beside an ordinary dense FFN.
#pragma once
#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

namespace exfusion {

// An FFN's tensors in the order of kFfnTensors: fc1.weight [hidden, dim], fc1.bias [hidden], fc2.weight
// [dim, hidden], fc2.bias [dim].
using FfnTensors = std::array<at::Tensor, 4>;

// Where a forward pass of training stands; random draws inside an FFN are a function of seed, step and rows
// (core/random.h), so that no cut of the global batch changes them.
struct PassPosition {
  std::uint64_t seed = 0;
  std::int64_t step = 0;         // finished steps
  std::int64_t micro_batch = 0;  // index within the step, on this rank
  std::int64_t row = 0,
               all_rows = 0;  // place of the pass's first sample among those of the step; 0: the pass alone
  // Adds up over the passes that ranks make at the same time, in place; empty: there are none.
  std::function<void(std::vector<double>&)> sum_over_ranks;
};

// In evaluation mode (torch's module flag) a forward pass draws nothing, drops nothing and counts nothing:
// the output of an example depends on that example alone.
class FeedForward : public torch::nn::Module {
 public:
  virtual at::Tensor forward(const at::Tensor& x) = 0;  // [n, tokens, dim] -> the same shape
  // Initial values; `ffn` is its number in the model. What a dense FFN of that number starts from is expert
  // 0.
  virtual void draw_parameters(std::uint64_t seed, std::int64_t ffn) = 0;
  // Before each forward pass of training.
  virtual void begin_pass(const PassPosition&) {}
  // Of the last forward pass in training mode: a scalar to add to that pass's mean loss, its coefficient
  // included; undefined: none.
  virtual at::Tensor auxiliary_loss() const { return {}; }
  // What a step has counted on this rank and after_update wants for the global batch: added up over ranks in
  // between.
  virtual std::span<std::int64_t> step_counts() { return {}; }
  // After each optimizer update; progress in (0, 1] is the part of the run's steps that is done.
  virtual void after_update(double /*progress*/) {}
  // The dense FFN that equals this one in evaluation mode, bit for bit, or nullopt if there is none.
  virtual std::optional<FfnTensors> dense_form() const = 0;
  // Matrix-multiply FLOPs of the forward pass of one example of `tokens` tokens, nothing dropped.
  virtual double forward_flops(std::int64_t tokens) const = 0;
};

// A model's feed-forward modules in the order of the forward pass.
std::vector<std::shared_ptr<FeedForward>> find_feed_forwards(const torch::nn::Module& model);

}  // namespace exfusion
