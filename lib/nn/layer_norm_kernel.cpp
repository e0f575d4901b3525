#include "nn/layer_norm_kernel.h"

#include "core/instruction_sets.h"
#include "nn/layer_norm_element.h"
#include "nn/row_chunks.h"

namespace exfusion {
namespace {

constexpr int kLanes = 16;

// Sums of f(i) over i < n, in lanes that vectorise.
[[gnu::always_inline]] inline float lane_sum(std::int64_t n, const auto& f) {
  float lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) lanes[j] += f(i + j);
  }
  for (int j = 0; i + j < n; ++j) lanes[j] += f(i + j);
  for (int half = kLanes / 2; half >= 1; half /= 2) {
    for (int j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  }
  return lanes[0];
}

template <class T>
[[gnu::always_inline]] inline void forward_row(std::int64_t dim, const float* __restrict x,
                                               const T* __restrict branch, float factor,
                                               const float* __restrict weight, const float* __restrict bias,
                                               float eps, float* __restrict sum, T* __restrict normed,
                                               float* mean, float* inverse_std) {
  if (branch) {
    for (std::int64_t i = 0; i < dim; ++i) sum[i] = x[i] + factor * to_float(branch[i]);
  }
  const float* __restrict row = branch ? sum : x;
  const float over_dim = 1.0f / static_cast<float>(dim);
  const float middle = over_dim * lane_sum(dim, [&](std::int64_t i) { return row[i]; });
  const float squares = lane_sum(dim, [&](std::int64_t i) { return (row[i] - middle) * (row[i] - middle); });
  const float scale = inverse_deviation(squares, static_cast<float>(dim), eps);
  for (std::int64_t i = 0; i < dim; ++i)
    normed[i] = from_float<T>(layer_norm_element(row[i], middle, scale, weight[i], bias[i]));
  *mean = middle;
  *inverse_std = scale;
}

template <class T>
[[gnu::always_inline]] inline void backward_row(std::int64_t dim, const float* __restrict row, float mean,
                                                float scale, float factor, const float* __restrict weight,
                                                const float* __restrict d_sum, const T* __restrict d_normed,
                                                float* __restrict d_x, T* __restrict d_branch,
                                                float* __restrict d_weight, float* __restrict d_bias) {
  const float over_dim = 1.0f / static_cast<float>(dim);
  const float g_mean =
      over_dim * lane_sum(dim, [&](std::int64_t i) { return to_float(d_normed[i]) * weight[i]; });
  const float gz_mean = over_dim * lane_sum(dim, [&](std::int64_t i) {
                          return to_float(d_normed[i]) * weight[i] * ((row[i] - mean) * scale);
                        });
  for (std::int64_t i = 0; i < dim; ++i) {
    const float d = to_float(d_normed[i]), z = (row[i] - mean) * scale;
    d_weight[i] += d * z;
    d_bias[i] += d;
    d_x[i] = layer_norm_gradient_element(d * weight[i], g_mean, z, gz_mean, scale);
  }
  if (d_sum) {
    for (std::int64_t i = 0; i < dim; ++i) d_x[i] += d_sum[i];
  }
  if (d_branch) {
    for (std::int64_t i = 0; i < dim; ++i) d_branch[i] = from_float<T>(factor * d_x[i]);
  }
}

// target_clones takes no templates.
EXFUSION_INSTRUCTION_SETS void norm_row(std::int64_t dim, const float* x, const float* branch, float factor,
                                        const float* weight, const float* bias, float eps, float* sum,
                                        float* normed, float* mean, float* inverse_std) {
  forward_row(dim, x, branch, factor, weight, bias, eps, sum, normed, mean, inverse_std);
}
EXFUSION_INSTRUCTION_SETS void norm_row(std::int64_t dim, const float* x, const Bfloat16* branch,
                                        float factor, const float* weight, const float* bias, float eps,
                                        float* sum, Bfloat16* normed, float* mean, float* inverse_std) {
  forward_row(dim, x, branch, factor, weight, bias, eps, sum, normed, mean, inverse_std);
}
EXFUSION_INSTRUCTION_SETS void norm_backward_row(std::int64_t dim, const float* row, float mean, float scale,
                                                 float factor, const float* weight, const float* d_sum,
                                                 const float* d_normed, float* d_x, float* d_branch,
                                                 float* d_weight, float* d_bias) {
  backward_row(dim, row, mean, scale, factor, weight, d_sum, d_normed, d_x, d_branch, d_weight, d_bias);
}
EXFUSION_INSTRUCTION_SETS void norm_backward_row(std::int64_t dim, const float* row, float mean, float scale,
                                                 float factor, const float* weight, const float* d_sum,
                                                 const Bfloat16* d_normed, float* d_x, Bfloat16* d_branch,
                                                 float* d_weight, float* d_bias) {
  backward_row(dim, row, mean, scale, factor, weight, d_sum, d_normed, d_x, d_branch, d_weight, d_bias);
}

// Row `row` of an array that may be absent.
template <class T>
T* row_of(T* array, std::int64_t row, std::int64_t dim) {
  return array ? array + row * dim : nullptr;
}

}  // namespace

template <class T>
void add_layer_norm(const NormShape& shape, const float* x, const T* branch, const float* factor,
                    const float* weight, const float* bias, float eps, float* sum, T* normed, float* mean,
                    float* inverse_std) {
#pragma omp parallel for schedule(static)
  for (std::int64_t row = 0; row < shape.rows; ++row) {
    const float own_factor = factor ? factor[row / shape.rows_per_sample] : 1.0f;
    norm_row(shape.dim, x + row * shape.dim, row_of(branch, row, shape.dim), own_factor, weight, bias, eps,
             row_of(sum, row, shape.dim), normed + row * shape.dim, mean + row, inverse_std + row);
  }
}

template <class T>
void add_layer_norm_backward(const NormShape& shape, const float* sum, const float* mean,
                             const float* inverse_std, const float* factor, const float* weight,
                             const float* d_sum, const T* d_normed, float* d_x, T* d_branch,
                             float* d_parameters) {
  const std::int64_t dim = shape.dim;
  sum_over_row_chunks(shape.rows, 2 * dim, d_parameters, [&](std::int64_t row, float* partial) {
    const float own_factor = factor ? factor[row / shape.rows_per_sample] : 1.0f;
    norm_backward_row(dim, sum + row * dim, mean[row], inverse_std[row], own_factor, weight,
                      row_of(d_sum, row, dim), d_normed + row * dim, d_x + row * dim,
                      row_of(d_branch, row, dim), partial, partial + dim);
  });
}

template void add_layer_norm(const NormShape&, const float*, const float*, const float*, const float*,
                             const float*, float, float*, float*, float*, float*);
template void add_layer_norm(const NormShape&, const float*, const Bfloat16*, const float*, const float*,
                             const float*, float, float*, Bfloat16*, float*, float*);
template void add_layer_norm_backward(const NormShape&, const float*, const float*, const float*,
                                      const float*, const float*, const float*, const float*, float*, float*,
                                      float*);
template void add_layer_norm_backward(const NormShape&, const float*, const float*, const float*,
                                      const float*, const float*, const float*, const Bfloat16*, float*,
                                      Bfloat16*, float*);

}  // namespace exfusion
