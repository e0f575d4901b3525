#include "fusion/expert_bank.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

#include "core/error.h"
#include "core/random.h"
#include "fusion/fused_update.h"
#include "nn/ffn.h"
#include "optim/reduction.h"

namespace exfusion {
namespace {

using FfnTensors = std::array<at::Tensor, 4>;
constexpr std::size_t kWeightOf[4] = {0, 0, 2, 2};  // fc1.weight for fc1.bias, fc2.weight for fc2.bias

// Pointers to the N slices of [N, …].
std::array<float*, kMaxExperts> slices(const at::Tensor& stacked) {
  std::array<float*, kMaxExperts> pointers{};
  const std::int64_t experts = stacked.size(0), stride = stacked.numel() / experts;
  auto* data = stacked.mutable_data_ptr<float>();
  for (std::int64_t k = 0; k < experts; ++k) pointers[static_cast<std::size_t>(k)] = data + k * stride;
  return pointers;
}

// a from z: softmax(z / temperature), or z itself.
std::vector<float> weights_from(const FusionConfig& config, const at::Tensor& z) {
  const auto* logits = z.const_data_ptr<double>();
  std::vector<double> a(logits, logits + z.numel());
  if (config.normalize == "softmax") {
    const double largest = *std::max_element(a.begin(), a.end());
    double sum = 0.0;
    for (double& x : a) sum += x = std::exp((x - largest) / config.temperature);
    for (double& x : a) x /= sum;
  }
  return {a.begin(), a.end()};
}

// dL/dz from c_k = dL/da_k. With sum_j a_j = 1, c_k - sum_j a_j c_j = sum_j a_j (c_k - c_j): exactly 0 for
// equal c.
std::vector<double> logit_gradients(const FusionConfig& config, const std::vector<float>& a,
                                    const std::vector<double>& c) {
  if (config.normalize != "softmax") return c;
  std::vector<double> gradient(c.size());
  for (std::size_t k = 0; k < c.size(); ++k) {
    double sum = 0.0;
    for (std::size_t j = 0; j < c.size(); ++j) sum += a[j] * (c[k] - c[j]);
    gradient[k] = a[k] * sum / config.temperature;
  }
  return gradient;
}

// The values from which expert k starts; `dense` are the FFN's own.
FfnTensors initial_expert(const FusionConfig& config, const FfnTensors& dense, std::uint64_t seed,
                          std::int64_t ffn, std::int64_t k, double sum_of_squared_a) {
  if (config.init.starts_with("independent")) {
    FfnTensors expert = initial_ffn(dense[0].size(1), dense[0].size(0), seed, ffn, k);
    // A sum of independent draws has the variance sum_k a_k^2 of one.
    if (config.init == "independent_scaled") {
      for (at::Tensor& tensor : expert) tensor.mul_(1.0 / std::sqrt(sum_of_squared_a));
    }
    return expert;
  }
  FfnTensors expert;
  for (std::size_t t = 0; t < 4; ++t) {
    expert[t] = dense[t].clone();
    if (config.init != "copy_noise") continue;
    const double deviation = config.noise * dense[kWeightOf[t]].to(at::kDouble).std(false).item<double>();
    CounterRandom random(seed, Draw::expert_noise, static_cast<std::uint32_t>(k),
                         static_cast<std::uint32_t>(4 * ffn + static_cast<std::int64_t>(t)));
    auto* x = expert[t].mutable_data_ptr<float>();
    for (std::int64_t i = 0; i < expert[t].numel(); ++i)
      x[i] += static_cast<float>(deviation * random.normal());
  }
  return expert;
}

}  // namespace

ExpertBank::ExpertBank(const FusionConfig& config, FlatParameters& parameters, std::size_t first_slot,
                       std::string name, std::int64_t ffn, std::uint64_t seed)
    : config_(config), parameters_(parameters), first_slot_(first_slot), name_(std::move(name)) {
  const std::int64_t n = config_.experts;
  if (n < 1 || n > kMaxExperts)
    throw std::invalid_argument("experts must be 1 to " + std::to_string(kMaxExperts));
  const bool learned = config_.weights == "learned";
  if (learned) {
    z_ = at::full({n}, config_.normalize == "softmax" ? 0.0 : 1.0 / static_cast<double>(n), at::kDouble);
    z_exp_avg_ = at::zeros_like(z_);
    z_exp_avg_sq_ = at::zeros_like(z_);
  }
  a_state_ = at::empty({n});
  set_weights(learned ? weights_from(config_, z_)
                      : std::vector<float>(static_cast<std::size_t>(n), 1.0f / static_cast<float>(n)));

  FfnTensors dense;
  for (std::size_t t = 0; t < 4; ++t) {
    dense[t] = parameters_.slots().at(first_slot_ + t).parameter.detach();
    std::vector<std::int64_t> shape = dense[t].sizes().vec();
    shape.insert(shape.begin(), n);
    experts_[t] = at::empty(shape);
    exp_avg_[t] = at::zeros(shape);
    exp_avg_sq_[t] = at::zeros(shape);
  }
  double sum_of_squared_a = 0.0;
  for (const float a : a_) sum_of_squared_a += static_cast<double>(a) * a;
  for (std::int64_t k = 0; k < n; ++k) {
    const FfnTensors expert = initial_expert(config_, dense, seed, ffn, k, sum_of_squared_a);
    for (std::size_t t = 0; t < 4; ++t) experts_[t].select(0, k).copy_(expert[t]);
  }
  fuse();
}

void ExpertBank::set_weights(std::vector<float> a) {
  a_ = std::move(a);
  std::copy(a_.begin(), a_.end(), a_state_.mutable_data_ptr<float>());
}

void ExpertBank::fuse() {
  for (std::size_t t = 0; t < 4; ++t) {
    const ParameterSlot& slot = parameters_.slots()[first_slot_ + t];
    const auto w = slices(experts_[t]);
    const ExpertTensors<float> tensors{
        slot.size, parameters_.values().mutable_data_ptr<float>() + slot.offset,
        nullptr,   {w.data(), a_.size()},
        {},        {}};
    fuse_experts<float>(tensors, a_);
  }
}

void ExpertBank::update(const AdamWConfig& config, double lr, double weights_lr, std::int64_t update,
                        float gradient_scale) {
  const std::vector<float> a = a_;  // of the forward pass that G belongs to
  if (z_.defined()) update_weights(config, weights_lr, update, gradient_scale);

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
    fused_update<float>(tensors, a, a_, gradient_scale, slot.decay ? decaying : plain);
  }
}

void ExpertBank::update_weights(const AdamWConfig& config, double lr, std::int64_t update,
                                float gradient_scale) {
  std::vector<double> c(a_.size(), 0.0), part(a_.size());  // c_k = <G, W_k>, tensor by tensor
  for (std::size_t t = 0; t < 4; ++t) {
    const ParameterSlot& slot = parameters_.slots()[first_slot_ + t];
    const auto w = slices(experts_[t]);
    inner_products<float>(parameters_.gradients().const_data_ptr<float>() + slot.offset,
                          std::span<const float* const>(w.data(), a_.size()), slot.size, part);
    for (std::size_t k = 0; k < c.size(); ++k) c[k] += part[k];
  }
  const std::vector<double> gradient = logit_gradients(config_, a_, c);
  adamw_update<double>(experts(), z_.mutable_data_ptr<double>(), z_exp_avg_.mutable_data_ptr<double>(),
                       z_exp_avg_sq_.mutable_data_ptr<double>(), gradient.data(), gradient_scale,
                       adamw_scalars<double>(config, lr, config_.weight_decay, update));
  set_weights(weights_from(config_, z_));
}

NamedTensors ExpertBank::expert_state() const {
  NamedTensors state;
  for (std::size_t t = 0; t < 4; ++t) state.emplace_back(name_ + "." + kFfnTensors[t], experts_[t]);
  state.emplace_back(name_ + ".a", a_state_);
  return state;
}

NamedTensors ExpertBank::optimizer_state() const {
  NamedTensors state;
  for (std::size_t t = 0; t < 4; ++t) {
    state.emplace_back("exp_avg." + name_ + "." + kFfnTensors[t], exp_avg_[t]);
    state.emplace_back("exp_avg_sq." + name_ + "." + kFfnTensors[t], exp_avg_sq_[t]);
  }
  if (z_.defined()) {
    state.emplace_back(name_ + ".z", z_);
    state.emplace_back("exp_avg." + name_ + ".z", z_exp_avg_);
    state.emplace_back("exp_avg_sq." + name_ + ".z", z_exp_avg_sq_);
  }
  return state;
}

void ExpertBank::restored() {
  const auto* stored = a_state_.const_data_ptr<float>();
  std::vector<float> a(stored, stored + a_state_.numel());
  const std::vector<float> expected = z_.defined() ? weights_from(config_, z_) : a_;
  // Another machine's exp may round differently; more than that and the files do not belong together.
  for (std::size_t k = 0; k < a.size(); ++k) {
    const float tolerance = z_.defined() ? 1e-6f * std::max(1.0f, std::abs(expected[k])) : 0.0f;
    if (!(std::abs(a[k] - expected[k]) <= tolerance)) {
      throw CheckpointError("experts: " + name_ + ".a[" + std::to_string(k) + "] is " + std::to_string(a[k]) +
                            ", but " +
                            (z_.defined() ? name_ + ".z gives " : std::string("static weights are ")) +
                            std::to_string(expected[k]));
    }
  }
  set_weights(std::move(a));
  fuse();
}

}  // namespace exfusion
