// Linear, LayerNorm and PatchEmbed with timm's parameter names. Parameters start as 0 (LayerNorm's weight as
// 1); whoever builds a model draws its values (nn/init.h).
#pragma once
#include <c10/core/ScalarType.h>
#include <torch/nn/module.h>

#include <cstdint>

namespace exfusion {

inline constexpr float kNormEps = 1e-6f;  // as timm's LayerNorm

// A parameter as products in `type` read it: itself, the copy kept in bf16 (may be undefined), or cast.
at::Tensor in_type(const at::Tensor& parameter, const at::Tensor& bf16_copy, at::ScalarType type);

// x W^T + b for x [..., in]; the result is bf16 under autocast. The copies hold the parameters in bf16, if
// someone keeps them.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                  const at::Tensor& weight_bf16 = {}, const at::Tensor& bias_bf16 = {});

class Linear : public torch::nn::Module {
 public:
  Linear(std::int64_t in, std::int64_t out);
  at::Tensor forward(const at::Tensor& x);  // [..., in] -> [..., out]
  at::Tensor weight, bias;                  // [out, in], [out]
  at::Tensor weight_bf16, bias_bf16;        // copies that training keeps for products in bf16, or undefined
};

// Normalises over the last dimension.
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
