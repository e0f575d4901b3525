#include "nn/smear_ffn.h"

#include <ATen/ATen.h>

#include "nn/precision.h"

namespace exfusion {
namespace {

// sum_k p[i, k] stacked[k] for each example i: [n, ...]. In fp32 whatever the precision of the pass: the
// experts' differences are small.
at::Tensor merge(const at::Tensor& p, const at::Tensor& stacked) {
  const NoAutocast no_autocast(c10::autocast_dispatch_keyset);
  const at::Tensor merged = p.matmul(stacked.flatten(1));
  return stacked.dim() == 3 ? merged.view({-1, stacked.size(1), stacked.size(2)}) : merged;
}

}  // namespace

SmearFfn::SmearFfn(const FfnConfig& config, std::int64_t dim, std::int64_t hidden, std::int64_t)
    : router_(register_module("router", std::make_shared<Router>(config.experts, dim))),
      experts_(register_module("experts", std::make_shared<Experts>(config.experts, dim, hidden))) {}

at::Tensor SmearFfn::forward(const at::Tensor& x) {
  const at::Tensor p = router_->forward(x.to(at::kFloat).mean(1)).softmax(-1);  // [n, experts]
  FfnTensors ffn;                                                               // one for each example
  for (std::size_t t = 0; t < ffn.size(); ++t) ffn[t] = merge(p, experts_->tensors[t]);
  const at::Tensor hidden = at::baddbmm(ffn[1].unsqueeze(1), x, ffn[0].transpose(1, 2));
  return at::baddbmm(ffn[3].unsqueeze(1), at::gelu(hidden), ffn[2].transpose(1, 2));
}

void SmearFfn::draw_parameters(std::uint64_t seed, std::int64_t ffn) {
  router_->draw_parameters(seed, ffn);
  experts_->draw_parameters(seed, ffn);
}

double SmearFfn::forward_flops(std::int64_t tokens) const {
  double merging = 0.0;
  for (const at::Tensor& stacked : experts_->tensors) merging += 2.0 * static_cast<double>(stacked.numel());
  return router_->token_flops() + merging + static_cast<double>(tokens) * experts_->ffn_flops();
}

}  // namespace exfusion
