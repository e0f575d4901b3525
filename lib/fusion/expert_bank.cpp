#include "fusion/expert_bank.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

#include "core/error.h"
#include "fusion/device_update.h"
#include "fusion/expert_init.h"
#include "fusion/learned_weights.h"
#include "fusion/weight_noise.h"
#include "nn/ffn.h"
#include "optim/device.h"

namespace exfusion {
namespace {

// Pointers to the N slices of [N, …].
std::array<float*, kMaxExperts> slices(const at::Tensor& stacked) {
  std::array<float*, kMaxExperts> pointers{};
  const std::int64_t experts = stacked.size(0), stride = stacked.numel() / experts;
  auto* data = stacked.mutable_data_ptr<float>();
  for (std::int64_t k = 0; k < experts; ++k) pointers[static_cast<std::size_t>(k)] = data + k * stride;
  return pointers;
}

std::vector<float> uniform_weights(std::int64_t n) {
  return std::vector<float>(static_cast<std::size_t>(n), 1.0f / static_cast<float>(n));
}

}  // namespace

ExpertBank::ExpertBank(const FusionConfig& config, FlatParameters& parameters, std::size_t first_slot,
                       std::string name, std::int64_t ffn, std::uint64_t seed)
    : config_(config),
      parameters_(parameters),
      first_slot_(first_slot),
      name_(std::move(name)),
      ffn_(ffn),
      seed_(seed),
      prices_(static_cast<std::size_t>(std::max<std::int64_t>(config.experts, 0)), 0.0) {
  const std::int64_t n = config_.experts;
  if (n < 1 || n > kMaxExperts)
    throw std::invalid_argument("experts must be 1 to " + std::to_string(kMaxExperts));
  FfnTensors dense;  // experts are drawn on the CPU, wherever they then live
  for (std::size_t t = 0; t < 4; ++t) {
    const at::Tensor parameter = parameters_.slots().at(first_slot_ + t).parameter.detach();
    dense[t] = parameter.cpu();
    std::vector<std::int64_t> shape = dense[t].sizes().vec();
    shape.insert(shape.begin(), n);
    experts_[t] = at::empty(shape, parameter.options());
    exp_avg_[t] = at::zeros(shape, parameter.options());
    exp_avg_sq_[t] = at::zeros(shape, parameter.options());
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
    for (std::size_t t = 0; t < 4; ++t) experts_[t].select(0, k).copy_(expert[t]);
  }
  unfused_ = keeps_source(config_);
  if (!unfused_) fuse();
}

FfnTensors ExpertBank::initial_tensors(std::int64_t k) const {
  const std::int64_t hidden = experts_[0].size(1), dim = experts_[0].size(2);
  FfnTensors dense = start_[0].defined() ? start_ : initial_ffn(dim, hidden, seed_, ffn_, 0);
  for (at::Tensor& tensor : dense) tensor = tensor.cpu();
  return initial_expert(config_, dense, seed_, ffn_, k, uniform_weights(experts()));
}

void ExpertBank::experts_loaded() {
  for (at::Tensor& tensor : start_) {
    if (tensor.defined()) tensor.fill_(std::nan(""));
  }
  unfused_ = false;
  fuse();
}

std::vector<float> ExpertBank::collapse_weights() const {
  if (router_) return router_->memory();
  return z_.defined() ? learned_weights(config_, z_) : uniform_weights(config_.experts);
}

void ExpertBank::set_weights(std::vector<float> a) {
  a_ = std::move(a);
  used_ = a_;
  std::copy(a_.begin(), a_.end(), a_state_.mutable_data_ptr<float>());
}

void ExpertBank::fuse() {
  fuse_with(a_);
}

bool ExpertBank::holds_source() const {
  for (std::size_t t = 0; t < 4; ++t) {
    if (!start_[t].defined() ||
        !at::equal(parameters_.slots()[first_slot_ + t].parameter.detach(), start_[t]))
      return false;
  }
  return true;
}

// Back to the model between steps.
void ExpertBank::collapse() {
  if (!unfused_) return fuse();
  for (std::size_t t = 0; t < 4; ++t)
    parameters_.slots()[first_slot_ + t].parameter.detach().copy_(start_[t]);
}

void ExpertBank::fuse_with(const std::vector<float>& a) {
  for (std::size_t t = 0; t < 4; ++t) {
    const ParameterSlot& slot = parameters_.slots()[first_slot_ + t];
    const auto w = slices(experts_[t]);
    const ExpertTensors<float> tensors{
        slot.size, parameters_.values().mutable_data_ptr<float>() + slot.offset,
        nullptr,   {w.data(), a.size()},
        {},        {}};
    fuse_experts_on(experts_[t].device(), tensors, a);
  }
}

// The weights of the forward pass, with this step's noise. W is written only if they are not those that made
// it: an FFN that keeps its source's tensors keeps them.
void ExpertBank::use(std::vector<float> a) {
  if (auto noisy = noisy_weights(config_, a, seed_, step_, ffn_)) a = std::move(*noisy);
  if (a == used_) return;
  used_ = std::move(a);
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
  use(phase_ == Phase::step ? router_->weights_in_step() : router_->weights_for(x));
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
  phase_ = Phase::collapsed;
  unfused_ = false;
  priced_ = used_;     // of the forward pass that G belongs to
  if (z_.defined()) {  // the walk needs the next a, and that needs the prices
    compute_prices();
    update_logits(config, weights_lr, update, gradient_scale);
  }
  // Memory weights know their next a before the prices: only the router needs these.
  const std::vector<float> next = router_ ? router_->next_memory() : a_;
  std::vector<double> part(z_.defined() ? 0 : next.size());
  if (!z_.defined()) std::fill(prices_.begin(), prices_.end(), 0.0);

  const AdamWScalars<float> decaying = adamw_scalars<float>(config, lr, config.weight_decay, update);
  const AdamWScalars<float> plain = adamw_scalars<float>(config, lr, 0.0, update);
  for (std::size_t t = 0; t < 4; ++t) {
    const ParameterSlot& slot = parameters_.slots()[first_slot_ + t];
    const auto w = slices(experts_[t]), m = slices(exp_avg_[t]), v = slices(exp_avg_sq_[t]);
    const ExpertTensors<float> tensors{slot.size,
                                       parameters_.values().mutable_data_ptr<float>() + slot.offset,
                                       parameters_.gradients().const_data_ptr<float>() + slot.offset,
                                       {w.data(), a_.size()},
                                       {m.data(), a_.size()},
                                       {v.data(), a_.size()}};
    fused_update_on(experts_[t].device(), tensors, priced_, next, gradient_scale,
                    slot.decay ? decaying : plain, part);
    for (std::size_t k = 0; k < part.size(); ++k) prices_[k] += part[k];
  }
  if (router_) router_->update(prices_, config, weights_lr, update, gradient_scale);
  set_weights(next);
}

// c_k = <G, W_k>, tensor by tensor.
void ExpertBank::compute_prices() {
  std::vector<double> part(a_.size());
  std::fill(prices_.begin(), prices_.end(), 0.0);
  for (std::size_t t = 0; t < 4; ++t) {
    const ParameterSlot& slot = parameters_.slots()[first_slot_ + t];
    const auto w = slices(experts_[t]);
    inner_products_on(experts_[t].device(), parameters_.gradients().const_data_ptr<float>() + slot.offset,
                      std::span<const float* const>(w.data(), a_.size()), slot.size, part);
    for (std::size_t k = 0; k < part.size(); ++k) prices_[k] += part[k];
  }
}

void ExpertBank::update_logits(const AdamWConfig& config, double lr, std::int64_t update,
                               float gradient_scale) {
  const std::vector<double> gradient = logit_gradients(config_, a_, prices_);
  adamw_update<double>(experts(), z_.mutable_data_ptr<double>(), z_exp_avg_.mutable_data_ptr<double>(),
                       z_exp_avg_sq_.mutable_data_ptr<double>(), gradient.data(), gradient_scale,
                       adamw_scalars<double>(config, lr, config_.weight_decay, update));
  a_ = learned_weights(config_, z_);
}

NamedTensors ExpertBank::expert_state() const {
  NamedTensors state;
  for (std::size_t t = 0; t < 4; ++t) state.emplace_back(name_ + "." + kFfnTensors[t], experts_[t]);
  state.emplace_back(name_ + ".a", a_state_);
  if (router_) {
    for (auto& item : router_->expert_state(name_)) state.push_back(std::move(item));
  }
  return state;
}

NamedTensors ExpertBank::optimizer_state() const {
  NamedTensors state;
  for (std::size_t t = 0; t < 4; ++t) {
    state.emplace_back("exp_avg." + name_ + "." + kFfnTensors[t], exp_avg_[t]);
    state.emplace_back("exp_avg_sq." + name_ + "." + kFfnTensors[t], exp_avg_sq_[t]);
    if (start_[t].defined()) state.emplace_back("start." + name_ + "." + kFfnTensors[t], start_[t]);
  }
  if (z_.defined()) {
    state.emplace_back(name_ + ".z", z_);
    state.emplace_back("exp_avg." + name_ + ".z", z_exp_avg_);
    state.emplace_back("exp_avg_sq." + name_ + ".z", z_exp_avg_sq_);
  }
  if (router_) {
    for (auto& item : router_->optimizer_state(name_)) state.push_back(std::move(item));
  }
  return state;
}

void ExpertBank::restored() {
  if (router_) router_->restored(name_);
  const auto* stored = a_state_.const_data_ptr<float>();
  std::vector<float> a(stored, stored + a_state_.numel());
  const std::vector<float> expected = collapse_weights();
  const std::string source = z_.defined() ? name_ + ".z gives "
                             : router_    ? name_ + ".memory is "
                                          : "static weights are ";
  // Another machine's exp may round differently; more than that and the files do not belong together.
  for (std::size_t k = 0; k < a.size(); ++k) {
    const float tolerance = z_.defined() ? 1e-6f * std::max(1.0f, std::abs(expected[k])) : 0.0f;
    if (!(std::abs(a[k] - expected[k]) <= tolerance)) {
      throw CheckpointError("experts: " + name_ + ".a[" + std::to_string(k) + "] is " + std::to_string(a[k]) +
                            ", but " + source + std::to_string(expected[k]));
    }
  }
  set_weights(std::move(a));
  unfused_ = keeps_source(config_) && holds_source();
  if (!unfused_) fuse();
}

}  // namespace exfusion
