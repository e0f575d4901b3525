#include "optim/flat_parameters.h"

#include <ATen/ATen.h>

#include <stdexcept>
#include <utility>

namespace exfusion {
namespace {

constexpr std::int64_t kAlignment =
    16;  // elements: a cache line, and the alignment of libtorch's own allocations

}  // namespace

FlatParameters::FlatParameters(std::vector<ParameterSlot> slots) : slots_(std::move(slots)) {
  std::int64_t elements = 0;
  for (ParameterSlot& slot : slots_) {
    const at::Tensor& parameter = slot.parameter;
    if (!parameter.defined() || parameter.scalar_type() != at::kFloat || !parameter.is_contiguous() ||
        parameter.device() != slots_[0].parameter.device()) {
      throw std::invalid_argument("parameter " + slot.name +
                                  " must be a contiguous fp32 tensor on the device of the first");
    }
    slot.offset = elements;
    slot.size = parameter.numel();
    elements += (slot.size + kAlignment - 1) / kAlignment * kAlignment;
  }
  values_ = slots_.empty() ? at::zeros({0}) : at::zeros({elements}, slots_[0].parameter.options());
  gradients_ = at::zeros_like(values_);
  for (ParameterSlot& slot : slots_) {
    const auto view = [&](const at::Tensor& flat) {
      return flat.narrow(0, slot.offset, slot.size).view(slot.parameter.sizes());
    };
    const at::Tensor value = view(values_);
    value.copy_(slot.parameter.detach());
    slot.parameter.set_data(value);
    slot.parameter.mutable_grad() = view(gradients_);
  }
}

void FlatParameters::zero_gradients() {
  gradients_.zero_();
}

}  // namespace exfusion
