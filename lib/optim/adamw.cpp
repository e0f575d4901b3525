#include "optim/adamw.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <utility>

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

DenseAdamW::DenseAdamW(FlatParameters& parameters, std::size_t first_slot, std::size_t last_slot,
                       std::vector<Range> owned)
    : parameters_(parameters), first_slot_(first_slot), last_slot_(last_slot), owned_(std::move(owned)) {
  constexpr std::int64_t kLine = 16;  // elements: each slot's moments begin on a cache line
  std::int64_t elements = 0;
  std::vector<double> scales;
  const bool whole = owned_.empty();
  for (std::size_t i = first_slot; i < last_slot; ++i) {
    const ParameterSlot& slot = parameters.slots().at(i);
    if (whole) owned_.emplace_back(0, slot.size);
    const auto [begin, end] = owned_.at(i - first_slot);
    places_.push_back(elements);
    elements += (end - begin + kLine - 1) / kLine * kLine;
    scales.push_back(slot.lr_scale);
  }
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
  for (std::size_t i = 0; i < places_.size(); ++i) {
    const ParameterSlot& slot = parameters_.slots()[first_slot_ + i];
    const auto [begin, end] = owned_[i];
    if (begin == end) continue;
    const std::int64_t at = slot.offset + begin;
    const double scale = lr_scale_.defined() ? lr_scale_.const_data_ptr<double>()[i] : 1.0;
    AdamWScalars<float> scalars =
        adamw_scalars<float>(config, lr * scale, slot.decay ? config.weight_decay / scale : 0.0, update);
    scalars.eps = static_cast<float>(config.eps * slot.eps_scale);
    adamw_update_on(exp_avg_.device(), end - begin, w + at, m + places_[i], v + places_[i], g + at,
                    gradient_scale, scalars, parameters_.bf16_data(at));
  }
}

TensorParts DenseAdamW::parts() const {
  TensorParts parts;
  if (lr_scale_.defined()) parts.push_back({.name = "lr_scale", .values = lr_scale_});
  for (std::size_t i = 0; i < places_.size(); ++i) {
    const ParameterSlot& slot = parameters_.slots()[first_slot_ + i];
    const auto [begin, end] = owned_[i];
    for (const auto& [name, flat] : {std::pair("exp_avg.", exp_avg_), {"exp_avg_sq.", exp_avg_sq_}}) {
      const at::Tensor own = flat.narrow(0, places_[i], end - begin);
      if (end - begin == slot.size) {
        parts.push_back({.name = name + slot.name, .values = own.view(slot.parameter.sizes())});
      } else {
        parts.push_back({.name = name + slot.name,
                         .values = own.unsqueeze(0),
                         .shape = slot.parameter.sizes().vec(),
                         .first_column = begin});
      }
    }
  }
  return parts;
}

std::int64_t DenseAdamW::size() const {
  std::int64_t size = 0;
  for (const auto& [begin, end] : owned_) size += end - begin;
  return size;
}

NamedTensors DenseAdamW::state() const {
  NamedTensors state;
  for (const TensorPart& part : parts()) state.emplace_back(part.name, part.values);
  return state;
}

}  // namespace exfusion
