// GELU of one element in its exact form, x Phi(x) (Hendrycks and Gimpel 2016), and its derivative: one
// arithmetic for CPU and CUDA. (The two's erf differ in the last bits, so unlike AdamW's the results do.)
#pragma once
#include <cmath>

#include "core/host_device.h"

namespace exfusion {

// x (1 + erf(x / sqrt 2)) / 2
EXFUSION_HOST_DEVICE inline float gelu_element(float x) {
  return 0.5f * x * (1.0f + std::erf(x * 0.70710678f));
}

// Phi(x) + x phi(x)
EXFUSION_HOST_DEVICE inline float gelu_derivative_element(float x) {
  return 0.5f * (1.0f + std::erf(x * 0.70710678f)) + x * 0.39894228f * std::exp(-0.5f * x * x);
}

}  // namespace exfusion
