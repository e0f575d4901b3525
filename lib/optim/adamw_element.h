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

// Updates moments m, v with gradient g; returns sqrt(v) without its bias.
template <class T>
EXFUSION_HOST_DEVICE inline T moments_element(T& m, T& v, T g, const AdamWScalars<T>& s) {
  m = s.beta1 * m + s.one_minus_beta1 * g;
  v = s.beta2 * v + s.one_minus_beta2 * g * g;
  return std::sqrt(v) * s.inverse_sqrt_bias2;
}

// Updates weight w and moments m, v with gradient g.
template <class T>
EXFUSION_HOST_DEVICE inline void adamw_element(T& w, T& m, T& v, T g, const AdamWScalars<T>& s) {
  const T root = moments_element(m, v, g, s);
  w = w * s.keep - s.step_size * m / (root + s.eps);
}

// Updates weight w of an expert whose gradient is a g, from the moments of g, of which m and `root` (from
// moments_element) are given. For constant a its own moments would be a m and a^2 v (docs/theory.md).
template <class T>
EXFUSION_HOST_DEVICE inline void shared_moments_element(T& w, T a, T m, T root, const AdamWScalars<T>& s) {
  const T size = a < T(0) ? -a : a;
  w = w * s.keep - s.step_size * (a * m) / (size * root + s.eps);
}

}  // namespace exfusion
