// From tensors to the arrays that the kernels without torch take.
#pragma once
#include <ATen/core/Tensor.h>

#include "core/bfloat16.h"

namespace exfusion {

// Whether there are CPU kernels for tensors of this kind, fp32 or bf16 on the CPU; libtorch's operators take
// the others.
inline bool has_kernels(const at::Tensor& x) {
  return x.device().is_cpu() && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16);
}

// Whether the kernels take this very tensor.
inline bool in_kernel_form(const at::Tensor& x) {
  return has_kernels(x) && x.is_contiguous();
}

// Elements of a tensor as float or Bfloat16; null if it is undefined.
template <class T>
T* elements_of(const at::Tensor& x) {
  return x.defined() ? static_cast<T*>(x.data_ptr()) : nullptr;
}

// Calls f with the tensor's elements, as float* or Bfloat16*.
void with_elements(const at::Tensor& x, const auto& f) {
  if (x.scalar_type() == at::kFloat)
    f(elements_of<float>(x));
  else
    f(elements_of<Bfloat16>(x));
}

}  // namespace exfusion
