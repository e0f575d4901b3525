// The fused residual and LayerNorm kernels' work on one lane's share of a row, for any device. Arrays are
// fp32 and contiguous, [rows, columns] unless said otherwise.
#pragma once
#include <cstdint>

#include "nn/layer_norm_element.h"

namespace exfusion {

inline constexpr int kRowLanes = 32;  // threads that share a row: a warp

// sum = x + factor branch, y = layer_norm(sum). A row's sums are taken lane by lane: lane l has columns l, l
// + kRowLanes, …
struct ResidualNorm {
  const float *x, *branch;
  const float* factor;  // [rows / factor_rows], one for so many rows (drop path); null: 1
  std::int64_t factor_rows;
  const float *weight, *bias;       // [columns]
  float *sum, *y, *mean, *inverse;  // mean, inverse [rows]: what the backward pass needs
  std::int64_t rows, columns;
  float eps;

  EXFUSION_HOST_DEVICE float lane_sum(std::int64_t row, std::int64_t lane) const {
    const float scale = factor ? factor[row / factor_rows] : 1.0f;
    float total = 0.0f;
    for (std::int64_t i = row * columns + lane; i < (row + 1) * columns; i += kRowLanes) {
      sum[i] = x[i] + scale * branch[i];
      total += sum[i];
    }
    return total;
  }
  EXFUSION_HOST_DEVICE float lane_squares(std::int64_t row, std::int64_t lane, float row_mean) const {
    float total = 0.0f;
    for (std::int64_t i = row * columns + lane; i < (row + 1) * columns; i += kRowLanes)
      total += (sum[i] - row_mean) * (sum[i] - row_mean);
    return total;
  }
  EXFUSION_HOST_DEVICE void write(std::int64_t row, std::int64_t lane, float row_mean,
                                  float row_inverse) const {
    for (std::int64_t c = lane; c < columns; c += kRowLanes) {
      const std::int64_t i = row * columns + c;
      y[i] = layer_norm_element(sum[i], row_mean, row_inverse, weight[c], bias[c]);
    }
    if (lane == 0) mean[row] = row_mean, inverse[row] = row_inverse;
  }
};

// dx = dsum + the gradient through the norm, dbranch = factor dx. (dsum: what reaches the sum past the norm.)
struct ResidualNormGradient {
  const float *sum, *mean, *inverse, *weight, *dy, *dsum, *factor;  // as in ResidualNorm
  std::int64_t factor_rows;
  float *dx, *dbranch;
  std::int64_t rows, columns;

  struct Sums {
    float s, s_normalised;
  };
  EXFUSION_HOST_DEVICE float normalised(std::int64_t row, std::int64_t i) const {
    return (sum[i] - mean[row]) * inverse[row];
  }
  EXFUSION_HOST_DEVICE Sums lane_sums(std::int64_t row, std::int64_t lane) const {
    Sums total = {0.0f, 0.0f};
    for (std::int64_t c = lane; c < columns; c += kRowLanes) {
      const std::int64_t i = row * columns + c;
      total.s += dy[i] * weight[c];
      total.s_normalised += dy[i] * weight[c] * normalised(row, i);
    }
    return total;
  }
  EXFUSION_HOST_DEVICE void write(std::int64_t row, std::int64_t lane, const Sums& of_row) const {
    const float scale = factor ? factor[row / factor_rows] : 1.0f, n = static_cast<float>(columns);
    for (std::int64_t c = lane; c < columns; c += kRowLanes) {
      const std::int64_t i = row * columns + c;
      dx[i] = dsum[i] + layer_norm_gradient_element(dy[i] * weight[c], of_row.s / n, normalised(row, i),
                                                    of_row.s_normalised / n, inverse[row]);
      dbranch[i] = scale * dx[i];
    }
  }
};

// Element i = chunk * columns + c: the sums of one column over one chunk of rows, which a second, small sum
// completes: dweight = sum of dy x^, dbias = sum of dy.
struct NormParameterGradient {
  const float *sum, *mean, *inverse, *dy;
  float *dweight, *dbias;  // [chunks, columns]
  std::int64_t rows, columns, chunk_rows;

  EXFUSION_HOST_DEVICE std::int64_t elements() const {
    return (rows + chunk_rows - 1) / chunk_rows * columns;
  }

  template <int width>
  EXFUSION_HOST_DEVICE void at(std::int64_t i) const {
    static_assert(width == 1);
    const std::int64_t first = i / columns * chunk_rows, c = i % columns;
    float weights = 0.0f, biases = 0.0f;
    for (std::int64_t row = first; row < rows && row < first + chunk_rows; ++row) {
      const std::int64_t j = row * columns + c;
      weights += dy[j] * (sum[j] - mean[row]) * inverse[row];
      biases += dy[j];
    }
    dweight[i] = weights;
    dbias[i] = biases;
  }
};

}  // namespace exfusion
