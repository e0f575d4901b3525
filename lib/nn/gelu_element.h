// exp and GELU of one number, without branches, so that compilers vectorise loops over them. The one place of
// this arithmetic: CPU and CUDA kernels both call it.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/host_device.h"

namespace exfusion {

// exp(x), within 2 units in the last place; 0 for x below -87 (1.6e-38), and x above 88 counts as 88. Range
// reduction by powers of two, then the polynomial of the Cephes library's expf.
EXFUSION_HOST_DEVICE inline float exp_element(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves a whole number in the low bits
  const bool vanishes = x < -87.0f;
  x = vanishes ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float shifted = x * 1.44269504f + kRound;
  const float power = shifted - kRound;
  const float r = (x - power * 0.693359375f) + power * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float y = p * r * r + r + 1.0f;
  std::int32_t bits = 0;
  memcpy(&bits, &y, sizeof bits);  // std::bit_cast is none of device code
  bits += static_cast<std::int32_t>(power) << 23;
  float result = 0.0f;
  memcpy(&result, &bits, sizeof result);
  return vanishes ? 0.0f : result;
}

struct Gelu {
  float value, derivative;
};

// gelu(x) = x Phi(x) in the erf form and its derivative Phi(x) + x phi(x), both within 3e-7 max(1, |x|). Phi
// by Abramowitz and Stegun 7.1.26 (absolute error 7.5e-8), which shares its exponential with phi.
EXFUSION_HOST_DEVICE inline Gelu gelu_element(float x) {
  const float e = exp_element(-0.5f * x * x);
  const float t = 1.0f / (1.0f + 0.3275911f * 0.70710678f * std::abs(x));
  float p = 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const float tail = 0.5f * p * t * e;  // Phi(-|x|)
  const float cdf = x >= 0.0f ? 1.0f - tail : tail;
  return {x * cdf, cdf + x * e * 0.39894228f};
}

}  // namespace exfusion
