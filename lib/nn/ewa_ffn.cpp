#include "nn/ewa_ffn.h"

#include <ATen/ATen.h>

#include "nn/dispatch.h"
#include "nn/ffn.h"

namespace exfusion {

EwaFfn::EwaFfn(const FfnConfig& config, std::int64_t dim, std::int64_t hidden, std::int64_t ffn)
    : share_rate_(config.share_rate),
      ffn_(ffn),
      experts_(register_module("experts", std::make_shared<Experts>(config.experts, dim, hidden))) {}

at::Tensor EwaFfn::forward(const at::Tensor& x) {
  if (!is_training()) return ffn_output(x, experts_->mean());
  const at::Tensor tokens = x.reshape({-1, x.size(-1)});
  const CounterRandom random(position_.seed, Draw::token_partition,
                             static_cast<std::uint32_t>(position_.step), 0, static_cast<std::uint32_t>(ffn_));
  const std::int64_t rows_here = x.size(0), tokens_per_row = rows_here > 0 ? tokens.size(0) / rows_here : 0;
  const std::int64_t all_rows = position_.all_rows > 0 ? position_.all_rows : rows_here;
  const at::Tensor chosen = random_partition(all_rows * tokens_per_row, experts_->size(), random)
                                .narrow(0, position_.row * tokens_per_row, tokens.size(0));
  const Dispatch dispatch = dispatch_by_expert(chosen, experts_->size(), 0);
  const at::Tensor rows = take_rows(tokens, dispatch.order, dispatch.inverse, 1);
  const at::Tensor outputs = experts_->forward(rows, dispatch.counts);
  return take_rows(outputs, dispatch.inverse, dispatch.order, 1).view(x.sizes());
}

void EwaFfn::draw_parameters(std::uint64_t seed, std::int64_t ffn) {
  experts_->draw_parameters(seed, ffn);
}

void EwaFfn::after_update(double progress) {
  const at::NoGradGuard no_grad;
  const auto experts = static_cast<double>(experts_->size());
  if (experts < 2) return;
  // (1 - beta) W_i + beta / (N - 1) (N mean - W_i) = W_i + beta N / (N - 1) (mean - W_i)
  const double toward_mean = share_rate_ * progress * experts / (experts - 1.0);
  for (at::Tensor& stacked : experts_->tensors) stacked.lerp_(stacked.mean(0, true), toward_mean);
}

double EwaFfn::forward_flops(std::int64_t tokens) const {
  return static_cast<double>(tokens) * experts_->ffn_flops();
}

}  // namespace exfusion
