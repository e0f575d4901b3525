#include "nn/attention_kernel.h"

#include <cmath>
#include <vector>

#include "core/instruction_sets.h"
#include "nn/gelu_element.h"
#include "nn/lanes.h"
#include "nn/small_matmul.h"

namespace exfusion {
namespace {

constexpr std::int64_t kCacheLine = 64;  // bytes

std::int64_t padded(std::int64_t n) {
  return (n + kLanes - 1) / kLanes * kLanes;
}

// One head's matrices in fp32: rows padded with zeros to whole lanes.
struct Scratch {
  explicit Scratch(const AttentionShape& shape)
      : tokens(shape.tokens), dim(shape.head_dim), wide_tokens(padded(tokens)), wide_dim(padded(dim)) {
    const std::int64_t tall = tokens * wide_dim, flat = wide_dim * wide_tokens, square = tokens * wide_tokens;
    static thread_local std::vector<float> memory;  // grows only: nothing is allocated from step to step
    memory.resize(static_cast<std::size_t>(5 * tall + 2 * flat + 2 * square));
    float* next = memory.data();
    for (float** matrix : {&q, &k, &v, &o, &result}) *matrix = next, next += tall;
    for (float** matrix : {&k_transposed, &v_transposed}) *matrix = next, next += flat;
    for (float** matrix : {&p, &dp}) *matrix = next, next += square;
  }
  std::int64_t tokens, dim, wide_tokens, wide_dim;
  float *q, *k, *v, *o, *result;       // [tokens, wide_dim]; o holds d_output
  float *k_transposed, *v_transposed;  // [wide_dim, wide_tokens]
  float *p, *dp;                       // [tokens, wide_tokens]
};

// Rows of numbers, `stride` apart, times factor, to padded rows. The next head's lie behind them: they are on
// their way while this head is worked on.
template <class T>
[[gnu::always_inline]] inline void load(std::int64_t rows, std::int64_t columns, const T* from,
                                        std::int64_t stride, float factor, float* to) {
  const std::int64_t wide = padded(columns);
  for (std::int64_t t = 0; t < rows; ++t) {
    const T* __restrict row = from + t * stride;
    float* __restrict out = to + t * wide;
    for (std::int64_t i = 0; i < columns; i += kCacheLine / std::int64_t{sizeof(T)})
      __builtin_prefetch(row + columns + i);
    std::int64_t i = 0;
    for (; i + kLanes <= columns; i += kLanes) {
      for (std::int64_t j = 0; j < kLanes; ++j) out[i + j] = factor * to_float(row[i + j]);
    }
    for (; i < wide; ++i) out[i] = i < columns ? factor * to_float(row[i]) : 0.0f;
  }
}

template <class T>
[[gnu::always_inline]] inline void store(std::int64_t rows, std::int64_t columns, const float* from,
                                         float factor, T* to, std::int64_t stride) {
  const std::int64_t wide = padded(columns);
  for (std::int64_t t = 0; t < rows; ++t) {
    const float* __restrict row = from + t * wide;
    T* __restrict out = to + t * stride;
    std::int64_t i = 0;
    for (; i + kLanes <= columns; i += kLanes) {
      for (std::int64_t j = 0; j < kLanes; ++j) out[i + j] = from_float<T>(factor * row[i + j]);
    }
    for (; i < columns; ++i) out[i] = from_float<T>(factor * row[i]);
  }
}

// Rows of scores become probabilities; the padding becomes 0. The padding is set in registers: single numbers
// written to memory would stall the vector that is read over them.
[[gnu::always_inline]] inline void softmax(const Scratch& s, float* scores) {
  constexpr Lanes kIndex = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const std::int64_t last = s.wide_tokens - kLanes;
  const auto in_row = kIndex < static_cast<float>(s.tokens - last);  // lanes of the last vector
  for (std::int64_t t = 0; t < s.tokens; ++t) {
    float* __restrict row = scores + t * s.wide_tokens;
    Lanes most = in_row ? load_lanes(row + last) : Lanes{} - INFINITY;
    store_lanes(most, row + last);
    for (std::int64_t i = 0; i < last; i += kLanes) most = larger(most, load_lanes(row + i));
    const float largest = largest_of_lanes(most);
    Lanes sums = {};
    for (std::int64_t i = 0; i <= last; i += kLanes) {
      for (std::int64_t j = 0; j < kLanes; ++j) row[i + j] = exp_element(row[i + j] - largest);
      sums += load_lanes(row + i);
    }
    const float factor = 1.0f / sum_of_lanes(sums);
    for (std::int64_t i = 0; i < last; i += kLanes) store_lanes(factor * load_lanes(row + i), row + i);
    store_lanes(in_row ? factor * load_lanes(row + last) : Lanes{}, row + last);
  }
}

// q (scaled), k and v of one head; `width`: of all heads.
template <class T>
[[gnu::always_inline]] inline void load_inputs(const Scratch& s, const T* qkv, std::int64_t width,
                                               float scale) {
  load(s.tokens, s.dim, qkv, 3 * width, scale, s.q);
  load(s.tokens, s.dim, qkv + width, 3 * width, 1.0f, s.k);
  load(s.tokens, s.dim, qkv + 2 * width, 3 * width, 1.0f, s.v);
}

template <class T>
[[gnu::always_inline]] inline void forward_head(const AttentionShape& shape, const T* qkv, T* output,
                                                T* probabilities) {
  const Scratch s(shape);
  const std::int64_t width = shape.heads * shape.head_dim;
  load_inputs(s, qkv, width, 1.0f / std::sqrt(static_cast<float>(shape.head_dim)));
  small_transpose(s.tokens, s.wide_dim, s.k, s.wide_dim, s.k_transposed, s.wide_tokens);
  small_matmul(s.tokens, s.wide_tokens, s.dim, s.q, s.wide_dim, 1, s.k_transposed, s.wide_tokens, s.p,
               s.wide_tokens);
  softmax(s, s.p);
  if (probabilities) store(s.tokens, s.tokens, s.p, 1.0f, probabilities, s.tokens);
  small_matmul(s.tokens, s.wide_dim, s.tokens, s.p, s.wide_tokens, 1, s.v, s.wide_dim, s.result, s.wide_dim);
  store(s.tokens, s.dim, s.result, 1.0f, output, width);
}

template <class T>
[[gnu::always_inline]] inline void backward_head(const AttentionShape& shape, const T* qkv,
                                                 const T* probabilities, const T* d_output, T* d_qkv) {
  const Scratch s(shape);
  const std::int64_t width = shape.heads * shape.head_dim, wide = s.wide_dim, across = s.wide_tokens;
  const float scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  load_inputs(s, qkv, width, scale);
  load(s.tokens, s.tokens, probabilities, s.tokens, 1.0f, s.p);
  load(s.tokens, s.dim, d_output, width, 1.0f, s.o);
  // dV = P^T dO
  small_matmul(s.tokens, wide, s.tokens, s.p, 1, across, s.o, wide, s.result, wide);
  store(s.tokens, s.dim, s.result, 1.0f, d_qkv + 2 * width, 3 * width);
  // dS = P (dP - sum_j P_j dP_j), dP = dO V^T
  small_transpose(s.tokens, wide, s.v, wide, s.v_transposed, across);
  small_matmul(s.tokens, across, s.dim, s.o, wide, 1, s.v_transposed, across, s.dp, across);
  for (std::int64_t t = 0; t < s.tokens; ++t) {
    const float* __restrict p = s.p + t * across;
    float* __restrict dp = s.dp + t * across;
    Lanes sums = {};
    for (std::int64_t i = 0; i < across; i += kLanes) sums += load_lanes(p + i) * load_lanes(dp + i);
    const float sum = sum_of_lanes(sums);
    for (std::int64_t i = 0; i < across; i += kLanes)
      store_lanes(load_lanes(p + i) * (load_lanes(dp + i) - sum), dp + i);
  }
  // dQ = dS K / sqrt(head_dim); dK = dS^T Q, and q is scaled already
  small_matmul(s.tokens, wide, s.tokens, s.dp, across, 1, s.k, wide, s.result, wide);
  store(s.tokens, s.dim, s.result, scale, d_qkv, 3 * width);
  small_matmul(s.tokens, wide, s.tokens, s.dp, 1, across, s.q, wide, s.result, wide);
  store(s.tokens, s.dim, s.result, 1.0f, d_qkv + width, 3 * width);
}

// target_clones takes no templates.
EXFUSION_INSTRUCTION_SETS void one_forward(const AttentionShape& shape, const float* qkv, float* output,
                                           float* probabilities) {
  forward_head(shape, qkv, output, probabilities);
}
EXFUSION_INSTRUCTION_SETS void one_forward(const AttentionShape& shape, const Bfloat16* qkv, Bfloat16* output,
                                           Bfloat16* probabilities) {
  forward_head(shape, qkv, output, probabilities);
}
EXFUSION_INSTRUCTION_SETS void one_backward(const AttentionShape& shape, const float* qkv,
                                            const float* probabilities, const float* d_output, float* d_qkv) {
  backward_head(shape, qkv, probabilities, d_output, d_qkv);
}
EXFUSION_INSTRUCTION_SETS void one_backward(const AttentionShape& shape, const Bfloat16* qkv,
                                            const Bfloat16* probabilities, const Bfloat16* d_output,
                                            Bfloat16* d_qkv) {
  backward_head(shape, qkv, probabilities, d_output, d_qkv);
}

}  // namespace

template <class T>
void attention_forward(const AttentionShape& shape, const T* qkv, T* output, T* probabilities) {
  const std::int64_t size = shape.tokens * shape.heads * shape.head_dim;  // of one sample's output
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < shape.samples * shape.heads; ++i) {
    const std::int64_t sample = i / shape.heads, head = i % shape.heads * shape.head_dim;
    T* const kept = probabilities ? probabilities + i * shape.tokens * shape.tokens : nullptr;
    one_forward(shape, qkv + 3 * size * sample + head, output + size * sample + head, kept);
  }
}

template <class T>
void attention_backward(const AttentionShape& shape, const T* qkv, const T* probabilities, const T* d_output,
                        T* d_qkv) {
  const std::int64_t size = shape.tokens * shape.heads * shape.head_dim;
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < shape.samples * shape.heads; ++i) {
    const std::int64_t sample = i / shape.heads, head = i % shape.heads * shape.head_dim;
    one_backward(shape, qkv + 3 * size * sample + head, probabilities + i * shape.tokens * shape.tokens,
                 d_output + size * sample + head, d_qkv + 3 * size * sample + head);
  }
}

template void attention_forward(const AttentionShape&, const float*, float*, float*);
template void attention_forward(const AttentionShape&, const Bfloat16*, Bfloat16*, Bfloat16*);
template void attention_backward(const AttentionShape&, const float*, const float*, const float*, float*);
template void attention_backward(const AttentionShape&, const Bfloat16*, const Bfloat16*, const Bfloat16*,
                                 Bfloat16*);

}  // namespace exfusion
