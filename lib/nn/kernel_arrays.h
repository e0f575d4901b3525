// From tensors to the arrays that the kernels without torch take.
#pragma once
#include <ATen/core/Tensor.h>

#include "core/bfloat16.h"

namespace exfusion {

// Whether the CPU kernels take this tensor: contiguous fp32 or bf16 on the CPU.
inline bool in_kernel_form(const at::Tensor& x) {
  return x.device().is_cpu() && x.is_contiguous() &&
         (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16);
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
