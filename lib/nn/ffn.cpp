#include "nn/ffn.h"

#include <ATen/ATen.h>

#include "nn/init.h"
#include "nn/layer_selection.h"
#include "nn/layers.h"
#include "nn/recompute.h"

namespace exfusion {

at::Tensor ffn_output(const at::Tensor& x, const FfnTensors& tensors) {
  return at::linear(at::gelu(at::linear(x, tensors[0], tensors[1])), tensors[2], tensors[3]);
}

Ffn::Ffn(std::int64_t dim, std::int64_t hidden)
    : fc1_(register_module("fc1", std::make_shared<Linear>(dim, hidden))),
      fc2_(register_module("fc2", std::make_shared<Linear>(hidden, dim))) {}

at::Tensor Ffn::forward(const at::Tensor& x) {
  if (watch_ && !recomputing()) watch_(x);
  return ffn_output(x, parameters_in_order());
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
