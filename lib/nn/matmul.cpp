#include "nn/matmul.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include "nn/bf16_matmul.h"
#include "nn/gelu_kernel.h"
#include "nn/kernel_arrays.h"

namespace exfusion {
namespace {

// oneDNN's linear layer, an operator that libtorch registers for its compiler and has no C++ function for.
at::Tensor onednn_linear(const at::Tensor& x, const at::Tensor& weight,
                         const std::optional<at::Tensor>& bias) {
  using Linear =
      at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, std::string_view,
                 c10::List<std::optional<at::Scalar>>, std::optional<std::string_view>);
  static const auto linear =
      c10::Dispatcher::singleton().findSchemaOrThrow("mkldnn::_linear_pointwise", "").typed<Linear>();
  return linear.call(x, weight, bias, "none", c10::List<std::optional<at::Scalar>>(), "");
}

bool has_onednn(const at::Tensor& x) {
  static const bool registered =
      at::hasMKLDNN() &&
      c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""}).has_value();
  return registered && has_kernels(x) && x.numel() > 0;
}

// Whether the products of bf16_matmul.h take these matrices; `k`: what is summed over.
bool for_own_products(const at::Tensor& a, const at::Tensor& b, std::int64_t k) {
  const auto fits = [](const at::Tensor& x) {
    return x.scalar_type() == at::kBFloat16 && in_kernel_form(x) && x.numel() > 0;
  };
  return has_bf16_matmul() && fits(a) && fits(b) && k % 2 == 0;
}

}  // namespace

at::Tensor linear_product(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  const std::int64_t in = x.size(1);
  if (for_own_products(x, weight, in) && (!bias.defined() || bias.scalar_type() == at::kBFloat16)) {
    const at::Tensor y = at::empty({x.size(0), weight.size(0)}, x.options());
    bf16_product_transposed(x.size(0), weight.size(0), in, elements_of<Bfloat16>(x),
                            elements_of<Bfloat16>(weight), elements_of<Bfloat16>(bias),
                            elements_of<Bfloat16>(y));
    return y;
  }
  if (!has_onednn(x)) return at::linear(x, weight, bias);
  return onednn_linear(x, weight, bias.defined() ? std::optional(bias) : std::nullopt);
}

at::Tensor linear_input_gradient(const at::Tensor& g, const at::Tensor& weight) {
  if (for_own_products(g, weight, g.size(1))) {
    const at::Tensor d_x = at::empty({g.size(0), weight.size(1)}, g.options());
    bf16_product(g.size(0), weight.size(1), g.size(1), elements_of<Bfloat16>(g),
                 elements_of<Bfloat16>(weight), elements_of<Bfloat16>(d_x));
    return d_x;
  }
  if (g.scalar_type() != at::kFloat || !has_onednn(g)) return at::mm(g, weight);
  return onednn_linear(g, weight.t(), std::nullopt);
}

at::Tensor linear_weight_gradient(const at::Tensor& g, const at::Tensor& x) {
  if (for_own_products(g, x, 0)) {
    const at::Tensor d_weight = at::empty({g.size(1), x.size(1)}, g.options().dtype(at::kFloat));
    bf16_transposed_product(g.size(1), x.size(1), g.size(0), elements_of<Bfloat16>(g),
                            elements_of<Bfloat16>(x), d_weight.data_ptr<float>());
    return d_weight;
  }
  if (g.scalar_type() != at::kFloat || !has_onednn(g)) return at::mm(g.t(), x).to(at::kFloat);
  // oneDNN is faster where the longer side is the row of the result.
  if (g.size(1) > x.size(1)) return onednn_linear(x.t(), g.t(), std::nullopt).t();
  return onednn_linear(g.t(), x.t(), std::nullopt);
}

at::Tensor linear_bias_gradient(const at::Tensor& g) {
  if (!in_kernel_form(g)) return g.sum(0, /*keepdim=*/false, at::kFloat);
  const at::Tensor sums = at::empty({g.size(1)}, g.options().dtype(at::kFloat));
  with_elements(g,
                [&](auto* elements) { column_sums(g.size(0), g.size(1), elements, sums.data_ptr<float>()); });
  return sums;
}

}  // namespace exfusion
