// The feed-forward network of a transformer block: fc2(gelu(fc1(x))), as timm's Mlp.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "nn/feed_forward.h"

namespace exfusion {

class Linear;

inline constexpr std::array<const char*, 4> kFfnTensors = {"fc1.weight", "fc1.bias", "fc2.weight",
                                                           "fc2.bias"};

// fc2(gelu(fc1(x))) with these tensors, [..., dim] -> [..., dim]; bf16 under autocast. `bf16` holds copies of
// them in bf16, if someone keeps them.
at::Tensor ffn_output(const at::Tensor& x, const FfnTensors& tensors, const FfnTensors& bf16 = {});

class Ffn : public FeedForward {
 public:
  Ffn(std::int64_t dim, std::int64_t hidden);
  at::Tensor forward(const at::Tensor& x) override;  // [..., dim] -> [..., dim]
  // fc1.weight [hidden, dim], fc1.bias [hidden], fc2.weight [dim, hidden], fc2.bias [dim], in the order of
  // kFfnTensors
  FfnTensors parameters_in_order() const;
  std::optional<FfnTensors> dense_form() const override { return parameters_in_order(); }
  void draw_parameters(std::uint64_t seed, std::int64_t ffn) override;  // initial_ffn, expert 0
  double forward_flops(std::int64_t tokens) const override;
  // `watch` sees the input of each forward pass before the weights are used; it may write them. One at most.
  // Not in a recomputation (nn/recompute.h), which uses the weights as they are then.
  void watch_input(std::function<void(const at::Tensor& x)> watch) { watch_ = std::move(watch); }

 private:
  std::shared_ptr<Linear> fc1_, fc2_;
  std::function<void(const at::Tensor&)> watch_;
};

// A model's FFNs with their dotted names ("blocks.0.mlp"), in the order of the forward pass.
struct NamedFfn {
  std::string name;
  std::shared_ptr<Ffn> ffn;
  std::int64_t index = 0;  // among the model's FFNs
};
std::vector<NamedFfn> find_ffns(const torch::nn::Module& model);
// Those of the blocks that `layers` chooses (nn/layer_selection.h); it must have no problem.
std::vector<NamedFfn> select_ffns(const torch::nn::Module& model, const std::vector<std::string>& layers);

// Fresh values for an FFN of these shapes, as timm draws them: weights from a normal of std 0.02 truncated at
// +-2 (not +-2 std), biases 0. `expert` and `ffn` choose the draw: expert 0 of FFN i is what the dense model
// starts from.
FfnTensors initial_ffn(std::int64_t dim, std::int64_t hidden, std::uint64_t seed, std::int64_t ffn,
                       std::int64_t expert);

}  // namespace exfusion
