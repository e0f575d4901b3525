// Residual addition and LayerNorm (Ba et al. 2016) in one pass over memory, forward and backward. The
// residual stream is fp32; T, the type of branches and normed values: float, Bfloat16. No torch here.
#pragma once
#include <cstdint>

#include "core/bfloat16.h"

namespace exfusion {

// Rows of `dim` numbers; rows_per_sample rows share one factor.
struct NormShape {
  std::int64_t rows, dim, rows_per_sample;
};

// sum = x + factor * branch; normed = (sum - mean) * inverse_std * weight + bias. x, branch, sum, normed:
// [rows, dim]; weight, bias: [dim]; factor: [rows / rows_per_sample]; mean, inverse_std: [rows]. factor may
// be null (1), and so may branch and sum, both (sum is x then).
template <class T>
void add_layer_norm(const NormShape& shape, const float* x, const T* branch, const float* factor,
                    const float* weight, const float* bias, float eps, float* sum, T* normed, float* mean,
                    float* inverse_std);

// From the gradients of sum (null: 0) and normed: those of x, branch (null if there was none) and, in
// d_parameters [2, dim], weight and bias. The sums over rows do not depend on the number of threads.
template <class T>
void add_layer_norm_backward(const NormShape& shape, const float* sum, const float* mean,
                             const float* inverse_std, const float* factor, const float* weight,
                             const float* d_sum, const T* d_normed, float* d_x, T* d_branch,
                             float* d_parameters);

}  // namespace exfusion
