#include "nn/gelu_kernel.h"

#include <algorithm>

#include "core/instruction_sets.h"
#include "nn/gelu_element.h"
#include "nn/row_chunks.h"

namespace exfusion {
namespace {

constexpr std::int64_t kBlock = 4096;  // elements of one call

template <class T>
[[gnu::always_inline]] inline void gelu_all(std::int64_t n, const T* x, T* y) {
  for (std::int64_t i = 0; i < n; ++i) y[i] = from_float<T>(gelu_element(to_float(x[i])).value);
}

template <class T>
[[gnu::always_inline]] inline void backward_row(std::int64_t n, const T* __restrict x, T* __restrict dy,
                                                T* __restrict y, float* __restrict sums) {
  for (std::int64_t i = 0; i < n; ++i) {
    const Gelu gelu = gelu_element(to_float(x[i]));
    const float gradient = gelu.derivative * to_float(dy[i]);
    y[i] = from_float<T>(gelu.value);
    dy[i] = from_float<T>(gradient);
    sums[i] += gradient;
  }
}

template <class T>
[[gnu::always_inline]] inline void add_row(std::int64_t n, const T* __restrict x, float* __restrict sums) {
  for (std::int64_t i = 0; i < n; ++i) sums[i] += to_float(x[i]);
}

// target_clones takes no templates.
EXFUSION_INSTRUCTION_SETS void gelu_block(std::int64_t n, const float* x, float* y) {
  gelu_all(n, x, y);
}
EXFUSION_INSTRUCTION_SETS void gelu_block(std::int64_t n, const Bfloat16* x, Bfloat16* y) {
  gelu_all(n, x, y);
}
EXFUSION_INSTRUCTION_SETS void gelu_backward_row(std::int64_t n, const float* x, float* dy, float* y,
                                                 float* sums) {
  backward_row(n, x, dy, y, sums);
}
EXFUSION_INSTRUCTION_SETS void gelu_backward_row(std::int64_t n, const Bfloat16* x, Bfloat16* dy, Bfloat16* y,
                                                 float* sums) {
  backward_row(n, x, dy, y, sums);
}
EXFUSION_INSTRUCTION_SETS void sum_row(std::int64_t n, const float* x, float* sums) {
  add_row(n, x, sums);
}
EXFUSION_INSTRUCTION_SETS void sum_row(std::int64_t n, const Bfloat16* x, float* sums) {
  add_row(n, x, sums);
}

}  // namespace

template <class T>
void gelu(std::int64_t n, const T* x, T* y) {
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < n; i += kBlock) gelu_block(std::min(kBlock, n - i), x + i, y + i);
}

template <class T>
void gelu_backward(std::int64_t rows, std::int64_t columns, const T* x, T* dy, T* y, float* bias_gradient) {
  sum_over_row_chunks(rows, columns, bias_gradient, [&](std::int64_t row, float* sums) {
    const std::int64_t at = row * columns;
    gelu_backward_row(columns, x + at, dy + at, y + at, sums);
  });
}

template <class T>
void column_sums(std::int64_t rows, std::int64_t columns, const T* x, float* sums) {
  sum_over_row_chunks(rows, columns, sums, [&](std::int64_t row, float* partial) {
    sum_row(columns, x + row * columns, partial);
  });
}

template void gelu(std::int64_t, const float*, float*);
template void gelu(std::int64_t, const Bfloat16*, Bfloat16*);
template void gelu_backward(std::int64_t, std::int64_t, const float*, float*, float*, float*);
template void gelu_backward(std::int64_t, std::int64_t, const Bfloat16*, Bfloat16*, Bfloat16*, float*);
template void column_sums(std::int64_t, std::int64_t, const float*, float*);
template void column_sums(std::int64_t, std::int64_t, const Bfloat16*, float*);

}  // namespace exfusion
