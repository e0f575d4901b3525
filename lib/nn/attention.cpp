#include "nn/attention.h"

#include <ATen/ATen.h>

#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

#include "nn/attention_kernel.h"
#include "nn/kernel_arrays.h"

namespace exfusion {

namespace {

AttentionShape shape_of(const at::Tensor& qkv, std::int64_t heads) {
  return {qkv.size(0), qkv.size(1), heads, qkv.size(2) / (3 * heads)};
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct AttentionFunction : torch::autograd::Function<AttentionFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& qkv, std::int64_t heads) {
    const at::Tensor output = at::empty({qkv.size(0), qkv.size(1), qkv.size(2) / 3}, qkv.options());
    at::Tensor probabilities;  // for the backward pass, if there will be one
    if (qkv.requires_grad())
      probabilities = at::empty({qkv.size(0), heads, qkv.size(1), qkv.size(1)}, qkv.options());
    with_elements(qkv, [&]<class T>(T* elements) {
      attention_forward(shape_of(qkv, heads), elements, elements_of<T>(output),
                        elements_of<T>(probabilities));
    });
    context->save_for_backward({qkv, probabilities});
    context->saved_data["heads"] = heads;
    return output;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &qkv = saved[0], &probabilities = saved[1], d_output = gradients[0].contiguous();
    const at::Tensor d_qkv = at::empty_like(qkv);
    with_elements(qkv, [&]<class T>(T* elements) {
      attention_backward(shape_of(qkv, context->saved_data["heads"].toInt()), elements,
                         elements_of<T>(probabilities), elements_of<T>(d_output), elements_of<T>(d_qkv));
    });
    return {d_qkv, {}};
  }
};

// Plain products instead of libtorch's scaled_dot_product_attention: on the CPU its backward pass in bf16 is
// 8 to 20 times slower, and in fp32 forward and backward together are no faster at 17 or 50 tokens.
at::Tensor attention_by_products(const at::Tensor& qkv, std::int64_t heads) {
  const auto [n, tokens, all_heads, head_dim] = shape_of(qkv, heads);
  // One copy lays the heads out as batches; the products below then read it in place.
  const auto parts = qkv.view({n, tokens, 3, heads, head_dim})
                         .permute({2, 0, 3, 1, 4})
                         .reshape({3, n * heads, tokens, head_dim})
                         .unbind(0);
  const auto &q = parts[0], &k = parts[1], &v = parts[2];
  // beta 0: the first argument is not read; alpha scales inside the product.
  const auto scores = at::baddbmm(at::empty({1, 1, 1}, q.options()), q, k.transpose(1, 2), 0.0,
                                  1.0 / std::sqrt(static_cast<double>(head_dim)));
  const auto outputs = at::bmm(scores.softmax(-1), v);  // [n heads, tokens, head_dim]
  return outputs.view({n, heads, tokens, head_dim}).transpose(1, 2).reshape({n, tokens, heads * head_dim});
}

}  // namespace

Attention::Attention(std::int64_t dim, std::int64_t heads)
    : heads_(heads),
      qkv_(register_module("qkv", std::make_shared<Linear>(dim, 3 * dim))),
      proj_(register_module("proj", std::make_shared<Linear>(dim, dim))) {}

at::Tensor Attention::forward(const at::Tensor& x) {
  const at::Tensor qkv = qkv_->forward(x);
  const bool short_sequence = in_kernel_form(qkv) && qkv.size(1) <= kAttentionKernelTokens;
  return proj_->forward(short_sequence ? AttentionFunction::apply(qkv, heads_)
                                       : attention_by_products(qkv, heads_));
}

}  // namespace exfusion
