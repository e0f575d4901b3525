#include "fusion/fused_update.h"

#include <algorithm>

#include "optim/bf16_kernel.h"
#include "optim/instruction_sets.h"
#include "optim/reduction.h"

namespace exfusion {
namespace {

// Elements of a block: its G and fused weights (64 KB in float) stay in the cache while the experts pass by.
// Smaller blocks would stay in L1, but each jump from one expert to the next restarts the hardware's
// prefetching: measured slower.
constexpr std::int64_t kBlock = 8192;
static_assert(kBlock % kReductionBlock == 0);
constexpr std::int64_t kParallelElements = 16384;  // below, starting threads costs more than it saves

// Expert by expert what fused_element does element by element: same operations, same order.
template <class T>
inline void update_expert(std::int64_t n, T* __restrict fused, const T* __restrict g, T* __restrict w,
                          T* __restrict m, T* __restrict v, T scale, T a, T a_next,
                          const AdamWScalars<T>& scalars) {
  const AdamWScalars<T> s = scalars;  // a local copy cannot alias the arrays
  for (std::int64_t i = 0; i < n; ++i) {
    adamw_element(w[i], m[i], v[i], a * (scale * g[i]), s);
    fused[i] += a_next * w[i];
  }
}

template <class T>
inline void add_expert(std::int64_t n, T* __restrict fused, const T* __restrict w, T a) {
  for (std::int64_t i = 0; i < n; ++i) fused[i] += a * w[i];
}

EXFUSION_INSTRUCTION_SETS
void update_block(std::int64_t n, float* fused, const float* g, float* w, float* m, float* v, float scale,
                  float a, float a_next, const AdamWScalars<float>& scalars) {
  update_expert(n, fused, g, w, m, v, scale, a, a_next, scalars);
}

EXFUSION_INSTRUCTION_SETS
void update_block(std::int64_t n, double* fused, const double* g, double* w, double* m, double* v,
                  double scale, double a, double a_next, const AdamWScalars<double>& scalars) {
  update_expert(n, fused, g, w, m, v, scale, a, a_next, scalars);
}

EXFUSION_INSTRUCTION_SETS
void add_block(std::int64_t n, float* fused, const float* w, float a) {
  add_expert(n, fused, w, a);
}

EXFUSION_INSTRUCTION_SETS
void add_block(std::int64_t n, double* fused, const double* w, double a) {
  add_expert(n, fused, w, a);
}

}  // namespace

template <class T>
void fused_update(const ExpertTensors<T>& tensors, std::span<const T> a, std::span<const T> a_next, T scale,
                  const AdamWScalars<T>& scalars, std::span<double> products) {
  const std::int64_t blocks = (tensors.size + kReductionBlock - 1) / kReductionBlock;
  // [N, blocks]
  const std::span<double> sums = block_sums(products.size() * static_cast<std::size_t>(blocks));
#pragma omp parallel for schedule(static) if (tensors.size >= kParallelElements)
  for (std::int64_t i = 0; i < tensors.size; i += kBlock) {
    const std::int64_t n = std::min(kBlock, tensors.size - i);
    std::fill_n(tensors.fused + i, n, T(0));
    for (std::size_t k = 0; k < a.size(); ++k) {
      for (std::int64_t j = 0; j < n && !products.empty(); j += kReductionBlock) {
        sums[k * static_cast<std::size_t>(blocks) + static_cast<std::size_t>((i + j) / kReductionBlock)] =
            block_product(std::min(kReductionBlock, n - j), tensors.gradient + i + j, tensors.w[k] + i + j);
      }
      update_block(n, tensors.fused + i, tensors.gradient + i, tensors.w[k] + i, tensors.m[k] + i,
                   tensors.v[k] + i, scale, a[k], a_next[k], scalars);
    }
    if (tensors.bf16) round_block(n, tensors.fused + i, tensors.bf16 + i);
  }
  for (std::size_t k = 0; k < products.size(); ++k)
    products[k] = blocks > 0 ? sum_blocks(&sums[k * static_cast<std::size_t>(blocks)], blocks) : 0.0;
}

template <class T>
void fuse_experts(const ExpertTensors<T>& tensors, std::span<const T> a) {
#pragma omp parallel for schedule(static) if (tensors.size >= kParallelElements)
  for (std::int64_t i = 0; i < tensors.size; i += kBlock) {
    const std::int64_t n = std::min(kBlock, tensors.size - i);
    std::fill_n(tensors.fused + i, n, T(0));
    for (std::size_t k = 0; k < a.size(); ++k) add_block(n, tensors.fused + i, tensors.w[k] + i, a[k]);
    if (tensors.bf16) round_block(n, tensors.fused + i, tensors.bf16 + i);
  }
}

template void fused_update(const ExpertTensors<float>&, std::span<const float>, std::span<const float>, float,
                           const AdamWScalars<float>&, std::span<double>);
template void fused_update(const ExpertTensors<double>&, std::span<const double>, std::span<const double>,
                           double, const AdamWScalars<double>&, std::span<double>);
template void fuse_experts(const ExpertTensors<float>&, std::span<const float>);
template void fuse_experts(const ExpertTensors<double>&, std::span<const double>);

}  // namespace exfusion
