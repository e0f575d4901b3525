#include "nn/layers.h"

#include <ATen/ATen.h>

#include <memory>

namespace exfusion {

Linear::Linear(std::int64_t in, std::int64_t out)
    : weight(register_parameter("weight", at::zeros({out, in}))),
      bias(register_parameter("bias", at::zeros({out}))) {}

at::Tensor Linear::forward(const at::Tensor& x) {
  return at::linear(x, weight, bias);
}

LayerNorm::LayerNorm(std::int64_t dim)
    : weight(register_parameter("weight", at::ones({dim}))),
      bias(register_parameter("bias", at::zeros({dim}))) {}

at::Tensor LayerNorm::forward(const at::Tensor& x) {
  return at::layer_norm(x, weight.sizes(), weight, bias, 1e-6);
}

PatchEmbed::PatchEmbed(std::int64_t channels, std::int64_t patch, std::int64_t dim) {
  const auto proj = register_module("proj", std::make_shared<torch::nn::Module>());
  weight_ = proj->register_parameter("weight", at::zeros({dim, channels, patch, patch}));
  bias_ = proj->register_parameter("bias", at::zeros({dim}));
}

at::Tensor PatchEmbed::forward(const at::Tensor& images) {
  const auto n = images.size(0), channels = weight_.size(1), patch = weight_.size(2);
  const auto rows = images.size(2) / patch, columns = images.size(3) / patch;
  const auto patches = images.reshape({n, channels, rows, patch, columns, patch})
                           .permute({0, 2, 4, 1, 3, 5})  // [n, rows, columns, channels, patch, patch]
                           .reshape({n, rows * columns, channels * patch * patch});
  return at::linear(patches, weight_.flatten(1), bias_);
}

}  // namespace exfusion
