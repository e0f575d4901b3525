// Linear, LayerNorm and PatchEmbed with timm's parameter names. Parameters start as 0 (LayerNorm's weight as
// 1); whoever builds a model draws its values (nn/init.h).
#pragma once
#include <torch/nn/module.h>

#include <cstdint>

namespace exfusion {

class Linear : public torch::nn::Module {
 public:
  Linear(std::int64_t in, std::int64_t out);
  at::Tensor forward(const at::Tensor& x);  // [..., in] -> [..., out]
  at::Tensor weight, bias;                  // [out, in], [out]
};

// Normalises over the last dimension with eps 1e-6, as timm's LayerNorm.
class LayerNorm : public torch::nn::Module {
 public:
  explicit LayerNorm(std::int64_t dim);
  at::Tensor forward(const at::Tensor& x);  // [..., dim] -> [..., dim]
  at::Tensor weight, bias;                  // [dim], [dim]
};

// The patches of a square image, each mapped to a token: timm's convolution whose stride is its kernel size
// (parameters proj.weight, proj.bias), computed as one matrix product over the flattened patches.
class PatchEmbed : public torch::nn::Module {
 public:
  PatchEmbed(std::int64_t channels, std::int64_t patch, std::int64_t dim);
  // [n, channels, size, size] -> [n, (size / patch)^2, dim], patches row by row. size is a multiple of patch.
  at::Tensor forward(const at::Tensor& images);

 private:
  at::Tensor weight_, bias_;  // [dim, channels, patch, patch], [dim]
};

}  // namespace exfusion
