// Where the experts started, and what checkpoints hold of them.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <utility>

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
  const at::Tensor& fc1 = parameters_.slots()[first_slot_].parameter;  // [hidden, dim]
  FfnTensors dense = start_[0].defined() ? start_ : initial_ffn(fc1.size(1), fc1.size(0), seed_, ffn_, 0);
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

namespace {

NamedTensors values_of(const TensorParts& parts) {
  NamedTensors values;
  for (const TensorPart& part : parts) values.emplace_back(part.name, part.values);
  return values;
}

void append(TensorParts& parts, const NamedTensors& whole) {
  for (const auto& [name, values] : whole) parts.push_back({.name = name, .values = values});
}

// Experts or moments of tensor t of an FFN, whose shape is `one`: [N, …], or without the N where all share
// them (experts: 0).
TensorPart part_of(const BankShard& shard, std::string name, const at::Tensor& values, std::size_t t,
                   at::IntArrayRef one, std::int64_t experts) {
  if (shard.whole()) return {.name = std::move(name), .values = values};
  std::vector<std::int64_t> shape = one.vec();
  if (experts > 0) shape.insert(shape.begin(), experts);
  return {.name = std::move(name),
          .values = experts > 0 ? values : values.unsqueeze(0),
          .shape = std::move(shape),
          .first_column = shard.begin(t)};
}

}  // namespace

TensorParts ExpertBank::expert_parts() const {
  TensorParts parts;
  for (std::size_t t = 0; t < 4; ++t)
    parts.push_back(part_of(shard_, name_ + "." + kFfnTensors[t], experts_[t], t,
                            parameters_.slots()[first_slot_ + t].parameter.sizes(), experts()));
  parts.push_back({.name = name_ + ".a", .values = a_state_});
  if (router_) append(parts, router_->expert_state(name_));
  return parts;
}

TensorParts ExpertBank::optimizer_parts() const {
  TensorParts parts;
  for (std::size_t t = 0; t < 4; ++t) {
    const std::string name = name_ + "." + kFfnTensors[t];
    const std::int64_t n = config_.shares_moments() ? 0 : experts();
    parts.push_back(part_of(shard_, "exp_avg." + name, exp_avg_[t], t,
                            parameters_.slots()[first_slot_ + t].parameter.sizes(), n));
    parts.push_back(part_of(shard_, "exp_avg_sq." + name, exp_avg_sq_[t], t,
                            parameters_.slots()[first_slot_ + t].parameter.sizes(), n));
    if (start_[t].defined()) parts.push_back({.name = "start." + name, .values = start_[t]});
  }
  if (z_.defined())
    append(parts, {{name_ + ".z", z_},
                   {"exp_avg." + name_ + ".z", z_exp_avg_},
                   {"exp_avg_sq." + name_ + ".z", z_exp_avg_sq_}});
  if (router_) append(parts, router_->optimizer_state(name_));
  return parts;
}

NamedTensors ExpertBank::expert_state() const {
  return values_of(expert_parts());
}

NamedTensors ExpertBank::optimizer_state() const {
  return values_of(optimizer_parts());
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
