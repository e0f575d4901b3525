#include "nn/ffn.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "nn/gelu_kernel.h"
#include "nn/init.h"
#include "nn/kernel_arrays.h"
#include "nn/layer_selection.h"
#include "nn/layers.h"
#include "nn/matmul.h"
#include "nn/precision.h"
#include "nn/recompute.h"

namespace exfusion {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor apply_gelu(const at::Tensor& x) {
  const at::Tensor y = at::empty_like(x);
  with_elements(x, [&]<class T>(T* elements) { gelu(x.numel(), elements, elements_of<T>(y)); });
  return y;
}

// For x [rows, dim] in the type of the products. Keeps fc1's output but not its GELU, which the backward pass
// computes again on the way to the derivative.
struct FfnFunction : torch::autograd::Function<FfnFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight1,
                            const at::Tensor& bias1, const at::Tensor& weight2, const at::Tensor& bias2,
                            const FfnTensors& bf16) {
    const NoAutocast no_autocast(c10::autocast_dispatch_keyset);
    const at::ScalarType type = x.scalar_type();
    const at::Tensor used1 = in_type(weight1, bf16[0], type), used2 = in_type(weight2, bf16[2], type);
    const at::Tensor hidden = linear_product(x, used1, in_type(bias1, bf16[1], type));
    context->save_for_backward({x, hidden, used1, used2});
    return linear_product(apply_gelu(hidden), used2, in_type(bias2, bf16[3], type));
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &hidden = saved[1];
    const at::Tensor g = gradients[0].contiguous();
    const at::Tensor d_hidden = linear_input_gradient(g, saved[3]);  // of GELU's output, then of its input
    const at::Tensor activated = at::empty_like(hidden);
    const at::Tensor d_bias1 = at::empty({hidden.size(1)}, hidden.options().dtype(at::kFloat));
    with_elements(hidden, [&]<class T>(T* elements) {
      gelu_backward(hidden.size(0), hidden.size(1), elements, elements_of<T>(d_hidden),
                    elements_of<T>(activated), d_bias1.data_ptr<float>());
    });
    const at::Tensor d_weight2 = linear_weight_gradient(g, activated), d_bias2 = linear_bias_gradient(g);
    const at::Tensor d_x =
        context->needs_input_grad(0) ? linear_input_gradient(d_hidden, saved[2]) : at::Tensor();
    return {d_x, linear_weight_gradient(d_hidden, x), d_bias1, d_weight2, d_bias2, {}};
  }
};

}  // namespace

at::Tensor ffn_output(const at::Tensor& x, const FfnTensors& tensors, const FfnTensors& bf16) {
  if (!has_kernels(x) || x.numel() == 0)
    return at::linear(at::gelu(at::linear(x, tensors[0], tensors[1])), tensors[2], tensors[3]);
  const at::ScalarType type = product_type(x);
  const at::Tensor rows = x.to(type).reshape({-1, x.size(-1)});
  return FfnFunction::apply(rows, tensors[0], tensors[1], tensors[2], tensors[3], bf16).view(x.sizes());
}

Ffn::Ffn(std::int64_t dim, std::int64_t hidden)
    : fc1_(register_module("fc1", std::make_shared<Linear>(dim, hidden))),
      fc2_(register_module("fc2", std::make_shared<Linear>(hidden, dim))) {}

at::Tensor Ffn::forward(const at::Tensor& x) {
  if (watch_ && !recomputing()) watch_(x);
  return ffn_output(x, parameters_in_order(),
                    {fc1_->weight_bf16, fc1_->bias_bf16, fc2_->weight_bf16, fc2_->bias_bf16});
}

FfnTensors Ffn::parameters_in_order() const {
  return {fc1_->weight, fc1_->bias, fc2_->weight, fc2_->bias};
}

void Ffn::draw_parameters(std::uint64_t seed, std::int64_t ffn) {
  const at::NoGradGuard no_grad;
  const auto values = initial_ffn(fc1_->weight.size(1), fc1_->weight.size(0), seed, ffn, 0);
  const auto parameters = parameters_in_order();
  for (std::size_t t = 0; t < values.size(); ++t) parameters[t].copy_(values[t]);
}

double Ffn::forward_flops(std::int64_t tokens) const {
  return 2.0 * static_cast<double>(tokens * (fc1_->weight.numel() + fc2_->weight.numel()));
}

std::vector<std::shared_ptr<FeedForward>> find_feed_forwards(const torch::nn::Module& model) {
  std::vector<std::shared_ptr<FeedForward>> found;
  for (const auto& module : model.modules(/*include_self=*/false)) {
    if (auto feed_forward = std::dynamic_pointer_cast<FeedForward>(module)) found.push_back(feed_forward);
  }
  return found;
}

std::vector<NamedFfn> find_ffns(const torch::nn::Module& model) {
  std::vector<NamedFfn> found;
  for (const auto& item : model.named_modules(/*name_prefix=*/"", /*include_self=*/false)) {
    if (auto ffn = std::dynamic_pointer_cast<Ffn>(item.value()))
      found.push_back({item.key(), std::move(ffn), static_cast<std::int64_t>(found.size())});
  }
  return found;
}

std::vector<NamedFfn> select_ffns(const torch::nn::Module& model, const std::vector<std::string>& layers) {
  std::vector<NamedFfn> ffns = find_ffns(model);
  const std::vector<bool> chosen = select_layers(layers, static_cast<std::int64_t>(ffns.size()));
  std::erase_if(ffns, [&](const NamedFfn& ffn) { return !chosen[static_cast<std::size_t>(ffn.index)]; });
  return ffns;
}

FfnTensors initial_ffn(std::int64_t dim, std::int64_t hidden, std::uint64_t seed, std::int64_t ffn,
                       std::int64_t expert) {
  FfnTensors values = {at::empty({hidden, dim}), at::zeros({hidden}), at::empty({dim, hidden}),
                       at::zeros({dim})};
  for (std::int64_t i : {0, 2}) {
    fill_normal(values[static_cast<std::size_t>(i)], 0.02, {seed, Draw::expert_init, expert, 4 * ffn + i});
  }
  return values;
}

}  // namespace exfusion
