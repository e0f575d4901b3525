// The feed-forward network of a transformer block: fc2(gelu(fc1(x))), as timm's Mlp.
#pragma once
#include <torch/nn/module.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace exfusion {

class Linear;

inline constexpr std::array<const char*, 4> kFfnTensors = {"fc1.weight", "fc1.bias", "fc2.weight",
                                                           "fc2.bias"};

class Ffn : public torch::nn::Module {
 public:
  Ffn(std::int64_t dim, std::int64_t hidden);
  at::Tensor forward(const at::Tensor& x);  // [..., dim] -> [..., dim]
  // fc1.weight [hidden, dim], fc1.bias [hidden], fc2.weight [dim, hidden], fc2.bias [dim], in the order of
  // kFfnTensors
  std::array<at::Tensor, 4> parameters_in_order() const;

 private:
  std::shared_ptr<Linear> fc1_, fc2_;
};

// A model's FFNs with their dotted names ("blocks.0.mlp"), in the order of the forward pass.
struct NamedFfn {
  std::string name;
  std::shared_ptr<Ffn> ffn;
};
std::vector<NamedFfn> find_ffns(const torch::nn::Module& model);

// Fresh values for an FFN of these shapes, as timm draws them: weights from a normal of std 0.02 truncated at
// +-2 (not
// +-2 std), biases 0. `expert` and `ffn` choose the draw: expert 0 of FFN i is what the dense model starts
// from.
std::array<at::Tensor, 4> initial_ffn(std::int64_t dim, std::int64_t hidden, std::uint64_t seed,
                                      std::int64_t ffn, std::int64_t expert);

}  // namespace exfusion
