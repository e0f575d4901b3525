// The fused bias and GELU kernels' work on a pack of elements, for any device. Arrays are fp32 and
// contiguous, [rows, columns] unless said otherwise.
#pragma once
#include "core/grid_walk.h"
#include "nn/gelu_element.h"

namespace exfusion {

// y = gelu(x + bias)
struct BiasGelu {
  const float *x, *bias;  // bias [columns]
  float* y;
  std::int64_t columns;

  bool fits() const {
    return columns % kVectorWidth == 0 && fits_vectors(x) && fits_vectors(bias) && fits_vectors(y);
  }

  template <int width>
  EXFUSION_HOST_DEVICE void at(std::int64_t i) const {
    auto pack = load<width>(x + i);
    const auto shift = load<width>(bias + i % columns);
    for (int j = 0; j < width; ++j) pack.at[j] = gelu_element(pack.at[j] + shift.at[j]).value;
    store<width>(y + i, pack);
  }
};

// dx = dy gelu'(x + bias); the bias's gradient is dx summed over the rows.
struct BiasGeluGradient {
  const float *x, *bias, *dy;
  float* dx;
  std::int64_t columns;

  bool fits() const {
    return columns % kVectorWidth == 0 && fits_vectors(x) && fits_vectors(bias) && fits_vectors(dy) &&
           fits_vectors(dx);
  }

  template <int width>
  EXFUSION_HOST_DEVICE void at(std::int64_t i) const {
    const auto input = load<width>(x + i), shift = load<width>(bias + i % columns);
    auto pack = load<width>(dy + i);
    for (int j = 0; j < width; ++j) pack.at[j] *= gelu_element(input.at[j] + shift.at[j]).derivative;
    store<width>(dx + i, pack);
  }
};

}  // namespace exfusion
