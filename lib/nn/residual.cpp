#include "nn/residual.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "nn/kernel_arrays.h"
#include "nn/layer_norm_kernel.h"
#include "nn/layers.h"
#include "nn/precision.h"

namespace exfusion {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

NormShape norm_shape(const at::Tensor& x, const at::Tensor& factor) {
  const std::int64_t dim = x.size(-1), rows = x.numel() / dim;
  return {rows, dim, factor.defined() ? rows / factor.size(0) : rows};
}

// Forward: {normed} or, with a branch, {normed, sum}.
struct AddNorm : torch::autograd::Function<AddNorm> {
  static variable_list forward(AutogradContext* context, const at::Tensor& x,
                               const std::optional<at::Tensor>& given_branch,
                               const std::optional<at::Tensor>& given_factor, const at::Tensor& weight,
                               const at::Tensor& bias, at::ScalarType type) {
    const at::Tensor branch = given_branch.value_or(at::Tensor()),
                     factor = given_factor.value_or(at::Tensor());
    const NormShape shape = norm_shape(x, factor);
    const at::Tensor normed = at::empty(x.sizes(), x.options().dtype(type));
    const at::Tensor sum = branch.defined() ? at::empty_like(x) : at::Tensor();
    const at::Tensor mean = at::empty({shape.rows}, x.options()), inverse_std = at::empty_like(mean);
    with_elements(normed, [&]<class T>(T* normed_elements) {
      add_layer_norm(shape, x.const_data_ptr<float>(), elements_of<T>(branch), elements_of<float>(factor),
                     weight.const_data_ptr<float>(), bias.const_data_ptr<float>(), kNormEps,
                     elements_of<float>(sum), normed_elements, mean.data_ptr<float>(),
                     inverse_std.data_ptr<float>());
    });
    context->save_for_backward({sum.defined() ? sum : x, mean, inverse_std, factor, weight});
    context->saved_data["branch"] = branch.defined();
    if (!sum.defined()) return {normed};
    return {normed, sum};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &sum = saved[0], &mean = saved[1], &inverse_std = saved[2], &factor = saved[3],
                     &weight = saved[4];
    const bool branch = context->saved_data["branch"].toBool();
    const at::Tensor d_sum = branch ? gradients[1].contiguous() : at::Tensor();
    const at::Tensor d_normed = gradients[0].contiguous();
    const at::Tensor d_x = at::empty_like(sum),
                     d_parameters = at::empty({2, weight.size(0)}, weight.options());
    const at::Tensor d_branch = branch ? at::empty_like(d_normed) : at::Tensor();
    with_elements(d_normed, [&]<class T>(T* d_normed_elements) {
      add_layer_norm_backward<T>(norm_shape(sum, factor), sum.const_data_ptr<float>(),
                                 mean.const_data_ptr<float>(), inverse_std.const_data_ptr<float>(),
                                 elements_of<float>(factor), weight.const_data_ptr<float>(),
                                 elements_of<float>(d_sum), d_normed_elements, d_x.data_ptr<float>(),
                                 elements_of<T>(d_branch), d_parameters.data_ptr<float>());
    });
    return {d_x, d_branch, {}, d_parameters[0], d_parameters[1], {}};
  }
};

}  // namespace

at::Tensor add_branch(const Residual& residual) {
  const auto& [x, branch, factor] = residual;
  if (!branch.defined()) return x;
  if (!factor.defined()) return x + branch;
  return at::addcmul(x, branch, factor.view({-1, 1, 1}));  // one pass over memory
}

NormedResidual add_and_norm(const Residual& residual, const LayerNorm& norm) {
  if (!in_kernel_form(residual.x) || residual.x.scalar_type() != at::kFloat || residual.x.numel() == 0) {
    const at::Tensor sum = add_branch(residual);
    return {sum, at::layer_norm(sum, norm.weight.sizes(), norm.weight, norm.bias, kNormEps)};
  }
  const at::ScalarType type = product_type(residual.x);
  // An operator takes no undefined tensor.
  std::optional<at::Tensor> branch, factor;
  if (residual.branch.defined()) branch = residual.branch.to(type).contiguous();
  if (residual.factor.defined()) factor = residual.factor.contiguous();
  const auto outputs = AddNorm::apply(residual.x, branch, factor, norm.weight, norm.bias, type);
  return {branch ? outputs[1] : residual.x, outputs[0]};
}

}  // namespace exfusion
