#include "nn/experts.h"

#include <ATen/ATen.h>

#include "nn/ffn.h"
#include "nn/init.h"
#include "nn/precision.h"

namespace exfusion {

Experts::Experts(std::int64_t experts, std::int64_t dim, std::int64_t hidden) {
  const auto fc1 = register_module("fc1", std::make_shared<torch::nn::Module>()),
             fc2 = register_module("fc2", std::make_shared<torch::nn::Module>());
  tensors = {fc1->register_parameter("weight", at::zeros({experts, hidden, dim})),
             fc1->register_parameter("bias", at::zeros({experts, hidden})),
             fc2->register_parameter("weight", at::zeros({experts, dim, hidden})),
             fc2->register_parameter("bias", at::zeros({experts, dim}))};
}

void Experts::draw_parameters(std::uint64_t seed, std::int64_t ffn) {
  const at::NoGradGuard no_grad;
  for (std::int64_t k = 0; k < size(); ++k) {
    const FfnTensors values = initial_ffn(tensors[0].size(2), tensors[0].size(1), seed, ffn, k);
    for (std::size_t t = 0; t < values.size(); ++t) tensors[t].select(0, k).copy_(values[t]);
  }
}

at::Tensor Experts::forward(const at::Tensor& rows, const std::vector<std::int64_t>& counts) const {
  // unbind and not select: its backward writes the gradients of all experts once, 0 where there is none.
  std::array<std::vector<at::Tensor>, 4> expert;
  for (std::size_t t = 0; t < expert.size(); ++t) expert[t] = tensors[t].unbind(0);
  std::vector<at::Tensor> outputs;
  std::int64_t first = 0;
  for (std::size_t k = 0; k < counts.size(); first += counts[k++]) {
    if (counts[k] == 0) continue;
    outputs.push_back(ffn_output(rows.narrow(0, first, counts[k]),
                                 {expert[0][k], expert[1][k], expert[2][k], expert[3][k]}));
  }
  if (const std::int64_t behind = rows.size(0) - first; behind > 0)
    outputs.push_back(at::zeros({behind, rows.size(1)}, (outputs.empty() ? rows : outputs[0]).options()));
  return at::cat(outputs);
}

FfnTensors Experts::mean() const {
  return {tensors[0].mean(0), tensors[1].mean(0), tensors[2].mean(0), tensors[3].mean(0)};
}

double Experts::ffn_flops() const {
  return 2.0 * static_cast<double>((tensors[0].numel() + tensors[2].numel()) / size());
}

Router::Router(std::int64_t experts, std::int64_t dim)
    : weight(register_parameter("weight", at::zeros({experts, dim}))) {}

void Router::draw_parameters(std::uint64_t seed, std::int64_t ffn) {
  const at::NoGradGuard no_grad;
  fill_normal(weight, 0.02, {seed, Draw::router_init, 0, ffn});
}

at::Tensor Router::forward(const at::Tensor& x) const {
  const NoAutocast no_autocast(c10::autocast_dispatch_keyset);
  return at::linear(x.to(at::kFloat), weight);
}

}  // namespace exfusion
