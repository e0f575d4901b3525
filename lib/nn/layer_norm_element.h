// Layer normalisation of one element, given its row's statistics (Ba et al. 2016): one arithmetic for CPU and
// CUDA.
#pragma once
#include <cmath>

#include "core/host_device.h"

namespace exfusion {

// 1 / sqrt(variance + eps); `squares` is the row's sum of squared deviations from its mean. NaN where that
// sum overflows: 0 would hide the overflow from whoever skips non-finite steps.
EXFUSION_HOST_DEVICE inline float inverse_deviation(float squares, float dim, float eps) {
  return 1.0f / std::sqrt(squares / dim + eps) + (squares - squares);
}

EXFUSION_HOST_DEVICE inline float layer_norm_element(float x, float mean, float inverse, float weight,
                                                     float bias) {
  return (x - mean) * inverse * weight + bias;
}

// dL/dx from s = dL/dy * weight: inverse (s - mean(s) - x^ mean(s x^)) with x^ = (x - mean) inverse.
EXFUSION_HOST_DEVICE inline float layer_norm_gradient_element(float s, float mean_s, float normalised,
                                                              float mean_s_normalised, float inverse) {
  return inverse * (s - mean_s - normalised * mean_s_normalised);
}

}  // namespace exfusion
