#include "optim/adamw.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "core/recipe.h"
#include "optim/device.h"
#include "optim/large_pages.h"

namespace exfusion {

AdamWConfig AdamWConfig::parse(Section section) {
  AdamWConfig config;
  section.one_of("name", "adamw", {"adamw"});
  config.lr = section.in_range("lr", config.lr, 0.0, 1e3);
  config.weight_decay = section.in_range("weight_decay", config.weight_decay, 0.0, 1e3);
  const std::vector<double> betas = section.get("betas", std::vector<double>{config.beta1, config.beta2});
  const auto valid = [](double beta) { return beta >= 0.0 && beta < 1.0; };
  if (betas.size() == 2 && valid(betas[0]) && valid(betas[1])) {
    config.beta1 = betas[0];
    config.beta2 = betas[1];
  } else {
    section.problem("betas", "betas must be two numbers in [0, 1), such as [0.9, 0.999]");
  }
  config.eps = section.in_range("eps", config.eps, 0.0, 1.0);
  config.schedule = ScheduleConfig::parse(section.child("schedule"));
  return config;
}

template <class T>
AdamWScalars<T> adamw_scalars(const AdamWConfig& config, double lr, double weight_decay,
                              std::int64_t update) {
  const auto t = static_cast<double>(update);
  return {static_cast<T>(config.beta1),
          static_cast<T>(1.0 - config.beta1),
          static_cast<T>(config.beta2),
          static_cast<T>(1.0 - config.beta2),
          static_cast<T>(lr / (1.0 - std::pow(config.beta1, t))),
          static_cast<T>(1.0 / std::sqrt(1.0 - std::pow(config.beta2, t))),
          static_cast<T>(config.eps),
          static_cast<T>(1.0 - lr * weight_decay)};
}

template AdamWScalars<float> adamw_scalars(const AdamWConfig&, double, double, std::int64_t);
template AdamWScalars<double> adamw_scalars(const AdamWConfig&, double, double, std::int64_t);

DenseAdamW::DenseAdamW(FlatParameters& parameters, std::size_t first_slot, std::size_t last_slot)
    : parameters_(parameters), first_slot_(first_slot), last_slot_(last_slot) {
  std::int64_t elements = 0;
  if (first_slot < last_slot) {
    const ParameterSlot& last = parameters.slots().at(last_slot - 1);
    elements = last.offset + last.size - parameters.slots().at(first_slot).offset;
  }
  std::vector<double> scales;
  for (std::size_t i = first_slot; i < last_slot; ++i) scales.push_back(parameters.slots()[i].lr_scale);
  if (std::any_of(scales.begin(), scales.end(), [](double scale) { return scale != 1.0; }))
    lr_scale_ = at::tensor(scales, at::kDouble);
  exp_avg_ = zeros_in_large_pages({elements}, parameters.values().device());
  exp_avg_sq_ = zeros_in_large_pages({elements}, parameters.values().device());
}

void DenseAdamW::step(const AdamWConfig& config, double lr, std::int64_t update, float gradient_scale) {
  auto* w = parameters_.values().mutable_data_ptr<float>();
  const auto* g = parameters_.gradients().const_data_ptr<float>();
  auto* m = exp_avg_.mutable_data_ptr<float>();
  auto* v = exp_avg_sq_.mutable_data_ptr<float>();
  for (std::size_t i = first_slot_; i < last_slot_; ++i) {
    const ParameterSlot& slot = parameters_.slots()[i];
    const std::int64_t at = slot.offset - parameters_.slots()[first_slot_].offset;
    const double scale = lr_scale_.defined() ? lr_scale_.const_data_ptr<double>()[i - first_slot_] : 1.0;
    AdamWScalars<float> scalars =
        adamw_scalars<float>(config, lr * scale, slot.decay ? config.weight_decay / scale : 0.0, update);
    scalars.eps = static_cast<float>(config.eps * slot.eps_scale);
    adamw_update_on(exp_avg_.device(), slot.size, w + slot.offset, m + at, v + at, g + slot.offset,
                    gradient_scale, scalars, parameters_.bf16_data(slot.offset));
  }
}

NamedTensors DenseAdamW::state() const {
  NamedTensors state;
  if (lr_scale_.defined()) state.emplace_back("lr_scale", lr_scale_);
  for (std::size_t i = first_slot_; i < last_slot_; ++i) {
    const ParameterSlot& slot = parameters_.slots()[i];
    const std::int64_t at = slot.offset - parameters_.slots()[first_slot_].offset;
    const auto view = [&](const at::Tensor& flat) {
      return flat.narrow(0, at, slot.size).view(slot.parameter.sizes());
    };
    state.emplace_back("exp_avg." + slot.name, view(exp_avg_));
    state.emplace_back("exp_avg_sq." + slot.name, view(exp_avg_sq_));
  }
  return state;
}

}  // namespace exfusion
