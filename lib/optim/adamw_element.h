// AdamW on one element (Loshchilov and Hutter 2019; PyTorch's order of operations). The one place of this
// arithmetic: dense parameters, experts, CPU and CUDA all call it, so what is tested on the CPU is what runs
// elsewhere.
#pragma once
#include <cmath>

#include "core/host_device.h"

namespace exfusion {

// What a step's arithmetic needs, computed once per step in double precision and rounded to T.
template <class T>
struct AdamWScalars {
  T beta1, one_minus_beta1, beta2, one_minus_beta2;
  T step_size;           // lr / (1 - beta1^t)
  T inverse_sqrt_bias2;  // 1 / sqrt(1 - beta2^t)
  T eps;
  T keep;  // 1 - lr * weight_decay
};

// Updates weight w and moments m, v with gradient g.
template <class T>
EXFUSION_HOST_DEVICE inline void adamw_element(T& w, T& m, T& v, T g, const AdamWScalars<T>& s) {
  m = s.beta1 * m + s.one_minus_beta1 * g;
  v = s.beta2 * v + s.one_minus_beta2 * g * g;
  w = w * s.keep - s.step_size * m / (std::sqrt(v) * s.inverse_sqrt_bias2 + s.eps);
}

}  // namespace exfusion
