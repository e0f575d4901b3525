#include "fusion/expert_bank.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "fusion/device_update.h"
#include "fusion/expert_init.h"
#include "fusion/learned_weights.h"
#include "fusion/weight_noise.h"
#include "optim/device.h"
#include "optim/large_pages.h"

namespace exfusion {
namespace {

// Pointers to the slices of [N, …], or to the one of a tensor that all experts share.
struct Slices {
  explicit Slices(const at::Tensor& stacked, bool shared = false)
      : count(shared ? 1 : static_cast<std::size_t>(stacked.size(0))) {
    auto* data = stacked.mutable_data_ptr<float>();
    const std::int64_t stride = stacked.stride(0);
    for (std::size_t k = 0; k < count; ++k) pointers[k] = data + static_cast<std::int64_t>(k) * stride;
  }
  operator std::span<float* const>() const { return {pointers.data(), count}; }
  operator std::span<const float* const>() const { return {pointers.data(), count}; }
  std::size_t count;
  std::array<float*, kMaxExperts> pointers;
};

// [n, …] of zeros in which every expert begins on a cache line, as the flat buffers' tensors do: where the
// size of an expert is odd, [n, …] is not contiguous.
at::Tensor zeros_for_experts(std::int64_t n, at::IntArrayRef shape, c10::Device device) {
  constexpr std::int64_t kLine = 16;
  const std::int64_t size = c10::multiply_integers(shape);
  std::vector<std::int64_t> stacked = shape.vec();
  stacked.insert(stacked.begin(), n);
  return zeros_in_large_pages({n, (size + kLine - 1) / kLine * kLine}, device)
      .narrow(1, 0, size)
      .view(stacked);
}

}  // namespace

ExpertBank::ExpertBank(const FusionConfig& config, FlatParameters& parameters, std::size_t first_slot,
                       std::string name, std::int64_t ffn, std::uint64_t seed,
                       const GradientExchange* exchange, bool deterministic)
    : config_(config),
      parameters_(parameters),
      first_slot_(first_slot),
      shard_(parameters, first_slot, exchange, deterministic),
      name_(std::move(name)),
      ffn_(ffn),
      seed_(seed),
      a_(static_cast<std::size_t>(std::clamp<std::int64_t>(config.experts, 0, kMaxExperts))),
      used_(a_),
      next_(a_),
      prices_(a_.size()) {
  const std::int64_t n = config_.experts;
  if (n < 1 || n > kMaxExperts)
    throw std::invalid_argument("experts must be 1 to " + std::to_string(kMaxExperts));
  FfnTensors dense;  // experts are drawn on the CPU, wherever they then live
  for (std::size_t t = 0; t < 4; ++t) {
    const at::Tensor parameter = parameters_.slots().at(first_slot_ + t).parameter.detach();
    dense[t] = parameter.cpu();
    const std::vector<std::int64_t> shape =
        shard_.whole() ? dense[t].sizes().vec() : std::vector<std::int64_t>{shard_.size(t)};
    const auto zeros = [&](bool stacked) {
      return stacked ? zeros_for_experts(n, shape, parameter.device())
                     : zeros_in_large_pages(shape, parameter.device());
    };
    experts_[t] = zeros(true);
    exp_avg_[t] = zeros(!config_.shares_moments());
    exp_avg_sq_[t] = zeros(!config_.shares_moments());
    if (!config_.from.empty()) start_[t] = parameter.clone();
  }
  if (config_.weights == "learned") {
    z_ = at::full({n}, config_.normalize == "softmax" ? 0.0 : 1.0 / static_cast<double>(n), at::kDouble);
    z_exp_avg_ = at::zeros_like(z_);
    z_exp_avg_sq_ = at::zeros_like(z_);
  }
  if (config_.weights == "memory")
    router_ = std::make_unique<RouterMemory>(config_, dense[0].size(1), seed, ffn);
  a_state_ = at::empty({n});
  set_weights(collapse_weights());
  priced_ = a_;
  for (std::int64_t k = 0; k < n; ++k) {
    const FfnTensors expert = initial_expert(config_, dense, seed, ffn, k, a_);
    for (std::size_t t = 0; t < 4; ++t) experts_[t].select(0, k).copy_(shard_.part(t, expert[t]));
  }
  unfused_ = keeps_source(config_);
  if (!unfused_) fuse();
}

void ExpertBank::set_weights(std::span<const float> a) {
  std::ranges::copy(a, a_.begin());
  used_ = a_;
  std::copy(a_.begin(), a_.end(), a_state_.mutable_data_ptr<float>());
}

void ExpertBank::fuse() {
  fuse_with(a_);
}

// Back to the model between steps.
void ExpertBank::collapse() {
  if (!unfused_) return fuse();
  for (std::size_t t = 0; t < 4; ++t)
    parameters_.slots()[first_slot_ + t].parameter.detach().copy_(start_[t]);
  parameters_.round_bf16();
}

void ExpertBank::fuse_with(std::span<const float> a) {
  for (std::size_t t = 0; t < 4; ++t) {
    const Slices w(experts_[t]);
    fuse_experts_on(experts_[t].device(), expert_tensors_of(t, w), a);
  }
  shard_.start_gather(parameters_);
  shard_.finish_gather(parameters_);
}

// This rank's part of one tensor, without moments.
ExpertTensors<float> ExpertBank::expert_tensors_of(std::size_t tensor, std::span<float* const> w) const {
  const std::int64_t begin = parameters_.slots()[first_slot_ + tensor].offset + shard_.begin(tensor);
  return {.size = shard_.size(tensor),
          .fused = parameters_.values().mutable_data_ptr<float>() + begin,
          .gradient = parameters_.gradients().const_data_ptr<float>() + begin,
          .w = w,
          .bf16 = parameters_.bf16_data(begin)};
}

// The weights of the forward pass, with this step's noise. W is written only if they are not those that made
// it: an FFN that keeps its source's tensors keeps them.
void ExpertBank::use(std::span<const float> a) {
  std::ranges::copy(a, next_.begin());
  add_weight_noise(config_, next_, seed_, step_, ffn_);
  if (next_ == used_) return;
  used_ = next_;
  fuse_with(used_);
}

void ExpertBank::begin_step(std::int64_t step, std::int64_t samples) {
  phase_ = Phase::step;
  step_ = step;
  if (router_) router_->begin_step(samples);
  if (!config_.routes_in_step()) use(a_);  // the others are not known before the input is
}

void ExpertBank::see_input(const at::Tensor& x) {
  if (phase_ == Phase::collapsed || !router_) return;
  if (phase_ == Phase::step) router_->add(x);
  if (!config_.routes_in_step()) return;
  if (phase_ == Phase::step) {
    shard_.sum_over_ranks(router_->step_routing());
    router_->weights_in_step(next_);
  } else {
    router_->weights_for(x, next_);
  }
  use(next_);
}

void ExpertBank::abandon_step() {
  phase_ = Phase::collapsed;
  if (used_ == a_) return;
  used_ = a_;
  collapse();
}

bool ExpertBank::differs_in_training() const {
  return config_.expert_dropout > 0.0 || config_.dirichlet > 0.0 || config_.routes_in_step();
}

void ExpertBank::begin_preview(std::int64_t step) {
  phase_ = Phase::preview;
  step_ = step;
  if (!config_.routes_in_step()) use(a_);
}

void ExpertBank::end_preview() {
  abandon_step();
}

void ExpertBank::update(const AdamWConfig& config, double lr, double weights_lr, std::int64_t update,
                        float gradient_scale) {
  std::vector<double> prices;
  append_prices(prices);
  shard_.sum(prices);
  std::span<double> rest(prices);
  update_experts(config, lr, weights_lr, update, gradient_scale, rest);
  finish_gather();
  update_router(config, weights_lr, update, gradient_scale);
}

void ExpertBank::update_experts(const AdamWConfig& config, double lr, double weights_lr, std::int64_t update,
                                float gradient_scale, std::span<double>& prices) {
  phase_ = Phase::collapsed;
  unfused_ = false;
  priced_ = used_;  // of the forward pass that G belongs to
  // Learned weights need the prices for the next a before the walk; a shard has only its part of them in the
  // walk.
  const bool priced_in_walk = !z_.defined() && shard_.whole();
  if (!priced_in_walk) compute_prices(prices);
  if (z_.defined()) update_logits(config, weights_lr, update, gradient_scale);
  // Memory weights know their next a before the prices: only the router needs these.
  next_ = a_;
  if (router_) router_->next_memory(next_);
  std::array<double, kMaxExperts> storage;
  const std::span<double> part = std::span(storage).first(priced_in_walk ? next_.size() : 0);
  if (priced_in_walk) std::ranges::fill(prices_, 0.0);

  const AdamWScalars<float> decaying = adamw_scalars<float>(config, lr, config.weight_decay, update);
  const AdamWScalars<float> plain = adamw_scalars<float>(config, lr, 0.0, update);
  for (std::size_t t = 0; t < 4; ++t) {
    const bool shared = config_.shares_moments(), decays = parameters_.slots()[first_slot_ + t].decay;
    const Slices w(experts_[t]), m(exp_avg_[t], shared), v(exp_avg_sq_[t], shared);
    ExpertTensors<float> tensors = expert_tensors_of(t, w);
    tensors.m = m;
    tensors.v = v;
    fused_update_on(experts_[t].device(), tensors, priced_, next_, gradient_scale, decays ? decaying : plain,
                    part);
    for (std::size_t k = 0; k < part.size(); ++k) prices_[k] += part[k];
  }
  shard_.start_gather(parameters_);
  if (router_) router_->compute_gradient(prices_);
  set_weights(next_);
}

void ExpertBank::update_router(const AdamWConfig& config, double weights_lr, std::int64_t update,
                               float gradient_scale) {
  if (router_) router_->update(config, weights_lr, update, gradient_scale);
}

void ExpertBank::append_prices(std::vector<double>& numbers) const {
  for (std::size_t t = 0; t < 4 && !shard_.whole(); ++t) {
    const Slices w(experts_[t]);
    shard_.append_products(experts_[t].device(), t, expert_tensors_of(t, w).gradient, w, numbers);
  }
}

// c_k = <G, W_k>, tensor by tensor; of a shard from what the ranks have summed.
void ExpertBank::compute_prices(std::span<double>& numbers) {
  std::array<double, kMaxExperts> storage;
  const std::span<double> part = std::span(storage).first(a_.size());
  std::ranges::fill(prices_, 0.0);
  for (std::size_t t = 0; t < 4; ++t) {
    if (!shard_.whole()) {
      shard_.take_products(t, numbers, prices_);
      continue;
    }
    const Slices w(experts_[t]);
    inner_products_on(experts_[t].device(), expert_tensors_of(t, w).gradient, w, shard_.size(t), part);
    for (std::size_t k = 0; k < part.size(); ++k) prices_[k] += part[k];
  }
}

void ExpertBank::update_logits(const AdamWConfig& config, double lr, std::int64_t update,
                               float gradient_scale) {
  std::array<double, kMaxExperts> gradient;
  logit_gradients(config_, a_, prices_, gradient);
  adamw_update<double>(experts(), z_.mutable_data_ptr<double>(), z_exp_avg_.mutable_data_ptr<double>(),
                       z_exp_avg_sq_.mutable_data_ptr<double>(), gradient.data(), gradient_scale,
                       adamw_scalars<double>(config, lr, config_.weight_decay, update));
  learned_weights(config_, z_, a_);
}

}  // namespace exfusion
