// Where the experts started, and what checkpoints hold of them.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "fusion/expert_bank.h"
#include "fusion/expert_init.h"
#include "fusion/learned_weights.h"
#include "nn/ffn.h"

namespace exfusion {
namespace {

std::vector<float> uniform_weights(std::int64_t n) {
  return std::vector<float>(static_cast<std::size_t>(n), 1.0f / static_cast<float>(n));
}

}  // namespace

std::vector<float> ExpertBank::collapse_weights() const {
  if (router_) return router_->memory();
  std::vector<float> a = uniform_weights(config_.experts);
  if (z_.defined()) learned_weights(config_, z_, a);
  return a;
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

bool ExpertBank::holds_source() const {
  for (std::size_t t = 0; t < 4; ++t) {
    if (!start_[t].defined() ||
        !at::equal(parameters_.slots()[first_slot_ + t].parameter.detach(), start_[t]))
      return false;
  }
  return true;
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
  set_weights(a);
  unfused_ = keeps_source(config_) && holds_source();
  if (!unfused_) fuse();
}

}  // namespace exfusion
