#include "optim/flat_parameters.h"

#include <ATen/ATen.h>

#include <stdexcept>
#include <utility>

#include "optim/bf16_kernel.h"
#include "optim/large_pages.h"

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
  const c10::Device device = slots_.empty() ? c10::Device(at::kCPU) : slots_[0].parameter.device();
  values_ = zeros_in_large_pages({elements}, device);
  gradients_ = zeros_in_large_pages({elements}, device);
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

void FlatParameters::keep_bf16() {
  if (!values_.is_cpu()) throw std::invalid_argument("a bf16 copy is kept on the CPU only");
  bf16_ = at::empty(values_.sizes(), at::kBFloat16);
  round_bf16();
}

void FlatParameters::round_bf16(std::int64_t begin, std::int64_t count) const {
  if (bf16_.defined()) round_to_bf16(count, values_.const_data_ptr<float>() + begin, bf16_data(begin));
}

std::uint16_t* FlatParameters::bf16_data(std::int64_t offset) const {
  return bf16_.defined() ? static_cast<std::uint16_t*>(bf16_.mutable_data_ptr()) + offset : nullptr;
}

}  // namespace exfusion
