#include "nn/layers.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <memory>

#include "nn/matmul.h"
#include "nn/precision.h"
#include "nn/residual.h"

namespace exfusion {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// For x [rows, in] in the type of the products.
struct LinearFunction : torch::autograd::Function<LinearFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& bias, const std::array<at::Tensor, 2>& bf16) {
    const NoAutocast no_autocast(c10::autocast_dispatch_keyset);
    const at::Tensor used = in_type(weight, bf16[0], x.scalar_type());
    context->save_for_backward({x, used});
    return linear_product(x, used, in_type(bias, bf16[1], x.scalar_type()));
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor g = gradients[0].contiguous();
    const at::Tensor d_x = context->needs_input_grad(0) ? linear_input_gradient(g, saved[1]) : at::Tensor();
    return {d_x, linear_weight_gradient(g, saved[0]), linear_bias_gradient(g), {}};
  }
};

}  // namespace

at::Tensor in_type(const at::Tensor& parameter, const at::Tensor& bf16_copy, at::ScalarType type) {
  if (type == at::kBFloat16 && bf16_copy.defined()) return bf16_copy;
  return parameter.to(type);
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                  const at::Tensor& weight_bf16, const at::Tensor& bias_bf16) {
  if (!has_kernels(x)) return at::linear(x, weight, bias);
  const at::ScalarType type = product_type(x);
  const at::Tensor rows = x.to(type).reshape({-1, x.size(-1)});
  std::vector<std::int64_t> shape = x.sizes().vec();
  shape.back() = weight.size(0);
  return LinearFunction::apply(rows, weight, bias, std::array{weight_bf16, bias_bf16}).view(shape);
}

Linear::Linear(std::int64_t in, std::int64_t out)
    : weight(register_parameter("weight", at::zeros({out, in}))),
      bias(register_parameter("bias", at::zeros({out}))) {}

at::Tensor Linear::forward(const at::Tensor& x) {
  return linear(x, weight, bias, weight_bf16, bias_bf16);
}

LayerNorm::LayerNorm(std::int64_t dim)
    : weight(register_parameter("weight", at::ones({dim}))),
      bias(register_parameter("bias", at::zeros({dim}))) {}

at::Tensor LayerNorm::forward(const at::Tensor& x) {
  return add_and_norm({x, {}, {}}, *this).normed;
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
  return linear(patches, weight_.flatten(1), bias_);
}

}  // namespace exfusion
