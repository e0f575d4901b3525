#include "nn/topk_ffn.h"

#include <ATen/ATen.h>

#include <cmath>
#include <numeric>

#include "nn/recompute.h"

namespace exfusion {

TopkFfn::TopkFfn(const FfnConfig& config, std::int64_t dim, std::int64_t hidden, std::int64_t)
    : config_(config),
      router_(register_module("router", std::make_shared<Router>(config.experts, dim))),
      experts_(register_module("experts", std::make_shared<Experts>(config.experts, dim, hidden))),
      loads_(static_cast<std::size_t>(config.experts)) {
  if (config.bias_balance > 0.0)
    selection_bias_ = register_buffer("selection_bias", at::zeros({config.experts}));
}

TopkFfn::Routing TopkFfn::route(const at::Tensor& logits) const {
  Routing routing{logits.softmax(-1), {}, {}};
  at::Tensor scores = routing.probabilities.detach();
  if (selection_bias_.defined())  // no bias brings back an expert that is out
    scores = at::where(logits.detach().isneginf(), logits.detach(), scores + selection_bias_);
  routing.chosen =
      std::get<1>(scores.sort(/*stable=*/true, /*dim=*/-1, /*descending=*/true)).narrow(1, 0, config_.top_k);
  routing.gates = routing.probabilities.gather(1, routing.chosen);
  // Biases may choose experts whose probabilities are all 0 in fp32.
  if (config_.renormalize && config_.top_k > 1)
    routing.gates = routing.gates / routing.gates.sum(1, true).clamp_min(1e-20);
  return routing;
}

at::Tensor TopkFfn::outputs(const at::Tensor& x, const at::Tensor& chosen, const Dispatch& dispatch) const {
  const at::Tensor rows = take_rows(x, dispatch.order, dispatch.inverse, chosen.size(1));
  return take_rows(experts_->forward(rows, dispatch.counts), dispatch.inverse, dispatch.order, 1)
      .view({-1, chosen.size(1), x.size(-1)});
}

at::Tensor TopkFfn::outputs(const at::Tensor& x, const at::Tensor& chosen) const {
  return outputs(x, chosen, dispatch_by_expert(chosen.reshape(-1), config_.experts, 0));
}

at::Tensor TopkFfn::combine(const at::Tensor& x, const Routing& routing) const {
  return (outputs(x, routing.chosen) * routing.gates.unsqueeze(-1)).sum(1);
}

at::Tensor TopkFfn::forward(const at::Tensor& x) {
  const at::Tensor tokens = x.reshape({-1, x.size(-1)});
  const at::Tensor logits = router_->forward(tokens);  // [tokens, experts]
  const Routing routing = route(logits);

  std::int64_t capacity = 0;
  if (is_training() && config_.capacity_factor > 0.0)
    capacity = static_cast<std::int64_t>(
        std::ceil(config_.capacity_factor * static_cast<double>(routing.chosen.numel()) /
                  static_cast<double>(config_.experts)));
  const Dispatch dispatch = dispatch_by_expert(routing.chosen.reshape(-1), config_.experts, capacity);
  if (is_training()) record_pass(logits, routing.probabilities, dispatch);
  return (outputs(tokens, routing.chosen, dispatch) * routing.gates.unsqueeze(-1)).sum(1).view(x.sizes());
}

void TopkFfn::record_pass(const at::Tensor& logits, const at::Tensor& probabilities,
                          const Dispatch& dispatch) {
  if (!recomputing()) {
    for (std::size_t e = 0; e < loads_.size(); ++e) loads_[e] += dispatch.loads[e];
  }
  auxiliary_loss_.reset();
  if (config_.balance_loss > 0.0) {
    std::vector<double> loads(dispatch.loads.begin(), dispatch.loads.end());
    if (sum_over_ranks_) sum_over_ranks_(loads);
    const at::Tensor fraction =
        at::tensor(loads, probabilities.options()) / std::accumulate(loads.begin(), loads.end(), 0.0);
    auxiliary_loss_ = config_.balance_loss * static_cast<double>(config_.experts) *
                      (fraction * probabilities.mean(0)).sum();
  }
  if (config_.z_loss > 0.0) {
    const at::Tensor z = config_.z_loss * logits.logsumexp(-1).square().mean();
    auxiliary_loss_ = auxiliary_loss_.defined() ? auxiliary_loss_ + z : z;
  }
}

void TopkFfn::draw_parameters(std::uint64_t seed, std::int64_t ffn) {
  router_->draw_parameters(seed, ffn);
  experts_->draw_parameters(seed, ffn);
}

void TopkFfn::begin_pass(const PassPosition& position) {
  if (position.micro_batch == 0) loads_.assign(loads_.size(), 0);
  sum_over_ranks_ = position.sum_over_ranks;
}

std::span<std::int64_t> TopkFfn::step_counts() {
  return selection_bias_.defined() ? std::span(loads_) : std::span<std::int64_t>();
}

void TopkFfn::after_update(double) {
  if (!selection_bias_.defined()) return;
  const at::Tensor loads = at::tensor(loads_, at::kDouble);
  selection_bias_.add_((loads.mean() - loads).sign().to(at::kFloat), config_.bias_balance);
}

double TopkFfn::forward_flops(std::int64_t tokens) const {
  return static_cast<double>(tokens) *
         (router_->token_flops() + static_cast<double>(config_.top_k) * experts_->ffn_flops());
}

}  // namespace exfusion
