#include "fusion/fused_update.h"

#include <algorithm>

#include "core/instruction_sets.h"
#include "optim/bf16_kernel.h"
#include "optim/reduction.h"

namespace exfusion {
namespace {

// Elements of a block: its G and fused weights (32 KB in float) stay in the cache while the experts pass by.
constexpr std::int64_t kBlock = kReductionBlock;
constexpr std::int64_t kParallelElements = 16384;  // below, starting threads costs more than it saves

// One expert's part of a block.
template <class T>
struct ExpertBlock {
  T *w, *m, *v;
};

// Expert by expert what fused_element does element by element: same operations, same order. Meanwhile `next`,
// the block that comes after this one, is fetched if it lies elsewhere: at each jump the hardware's own
// prefetching starts anew.
template <class T>
inline void update_expert(std::int64_t n, T* __restrict fused, const T* __restrict g,
                          const ExpertBlock<T>& block, const ExpertBlock<T>& next, T scale, T a, T a_next,
                          const AdamWScalars<T>& scalars) {
  constexpr std::int64_t kLine = 64 / sizeof(T);
  const AdamWScalars<T> s = scalars;  // a local copy cannot alias the arrays
  T* __restrict w = block.w, * __restrict m = block.m, * __restrict v = block.v;
  const auto update = [&](std::int64_t i) {
    adamw_element(w[i], m[i], v[i], a * (scale * g[i]), s);
    fused[i] += a_next * w[i];
  };
  const std::int64_t lines = next.w == w + n ? 0 : n / kLine;
  std::int64_t i = 0;
  for (; i < lines * kLine; i += kLine) {
    for (const T* array : {next.w, next.m, next.v}) __builtin_prefetch(array + i, 1, 2);
    for (std::int64_t j = i; j < i + kLine; ++j) update(j);
  }
  for (; i < n; ++i) update(i);
}

// The two halves of fused_shared_element: the moments, then expert by expert.
template <class T>
inline void update_moments(std::int64_t n, const T* __restrict g, T* __restrict m, T* __restrict v,
                           T* __restrict root, T scale, const AdamWScalars<T>& scalars) {
  const AdamWScalars<T> s = scalars;
  for (std::int64_t i = 0; i < n; ++i) root[i] = moments_element(m[i], v[i], scale * g[i], s);
}

template <class T>
inline void update_sharing_expert(std::int64_t n, T* __restrict fused, T* __restrict w, const T* __restrict m,
                                  const T* __restrict root, T a, T a_next, const AdamWScalars<T>& scalars) {
  const AdamWScalars<T> s = scalars;
  for (std::int64_t i = 0; i < n; ++i) {
    shared_moments_element(w[i], a, m[i], root[i], s);
    fused[i] += a_next * w[i];
  }
}

template <class T>
inline void add_expert(std::int64_t n, T* __restrict fused, const T* __restrict w, T a) {
  for (std::int64_t i = 0; i < n; ++i) fused[i] += a * w[i];
}

EXFUSION_INSTRUCTION_SETS
void update_block(std::int64_t n, float* fused, const float* g, const ExpertBlock<float>& block,
                  const ExpertBlock<float>& next, float scale, float a, float a_next,
                  const AdamWScalars<float>& scalars) {
  update_expert(n, fused, g, block, next, scale, a, a_next, scalars);
}

EXFUSION_INSTRUCTION_SETS
void update_block(std::int64_t n, double* fused, const double* g, const ExpertBlock<double>& block,
                  const ExpertBlock<double>& next, double scale, double a, double a_next,
                  const AdamWScalars<double>& scalars) {
  update_expert(n, fused, g, block, next, scale, a, a_next, scalars);
}

EXFUSION_INSTRUCTION_SETS
void moments_block(std::int64_t n, const float* g, float* m, float* v, float* root, float scale,
                   const AdamWScalars<float>& scalars) {
  update_moments(n, g, m, v, root, scale, scalars);
}

EXFUSION_INSTRUCTION_SETS
void moments_block(std::int64_t n, const double* g, double* m, double* v, double* root, double scale,
                   const AdamWScalars<double>& scalars) {
  update_moments(n, g, m, v, root, scale, scalars);
}

EXFUSION_INSTRUCTION_SETS
void sharing_block(std::int64_t n, float* fused, float* w, const float* m, const float* root, float a,
                   float a_next, const AdamWScalars<float>& scalars) {
  update_sharing_expert(n, fused, w, m, root, a, a_next, scalars);
}

EXFUSION_INSTRUCTION_SETS
void sharing_block(std::int64_t n, double* fused, double* w, const double* m, const double* root, double a,
                   double a_next, const AdamWScalars<double>& scalars) {
  update_sharing_expert(n, fused, w, m, root, a, a_next, scalars);
}

EXFUSION_INSTRUCTION_SETS
void add_block(std::int64_t n, float* fused, const float* w, float a) {
  add_expert(n, fused, w, a);
}

EXFUSION_INSTRUCTION_SETS
void add_block(std::int64_t n, double* fused, const double* w, double a) {
  add_expert(n, fused, w, a);
}

template <class T>
ExpertBlock<T> block_of(const ExpertTensors<T>& tensors, std::size_t k, std::int64_t begin) {
  return {tensors.w[k] + begin, tensors.m[k] + begin, tensors.v[k] + begin};
}

// Expert k of the block that begins at element `begin`, each expert with its moments.
template <class T>
void update_own(const ExpertTensors<T>& tensors, std::int64_t begin, std::int64_t n, std::size_t k, T scale,
                T a, T a_next, const AdamWScalars<T>& scalars) {
  const std::int64_t after = std::min(begin + kBlock, tensors.size - n);  // inside the array
  const bool last = k + 1 == tensors.w.size();
  const ExpertBlock<T> next = last ? block_of(tensors, 0, after) : block_of(tensors, k + 1, begin);
  update_block(n, tensors.fused + begin, tensors.gradient + begin, block_of(tensors, k, begin), next, scale,
               a, a_next, scalars);
}

// The same with shared moments; `root` [n] is written at k = 0.
template <class T>
void update_sharing(const ExpertTensors<T>& tensors, std::int64_t begin, std::int64_t n, std::size_t k,
                    T scale, T a, T a_next, const AdamWScalars<T>& scalars, T* root) {
  T* m = tensors.m[0] + begin;
  if (k == 0) moments_block(n, tensors.gradient + begin, m, tensors.v[0] + begin, root, scale, scalars);
  sharing_block(n, tensors.fused + begin, tensors.w[k] + begin, m, root, a, a_next, scalars);
}

}  // namespace

template <class T>
void fused_update(const ExpertTensors<T>& tensors, std::span<const T> a, std::span<const T> a_next, T scale,
                  const AdamWScalars<T>& scalars, std::span<double> products) {
  const std::int64_t blocks = (tensors.size + kReductionBlock - 1) / kReductionBlock;
  const bool shared = tensors.m.size() < tensors.w.size();
  // [N, blocks]
  const std::span<double> sums = block_sums(products.size() * static_cast<std::size_t>(blocks));
#pragma omp parallel for schedule(static) if (tensors.size >= kParallelElements)
  for (std::int64_t i = 0; i < tensors.size; i += kBlock) {
    const std::int64_t n = std::min(kBlock, tensors.size - i);
    T root[kBlock];
    std::fill_n(tensors.fused + i, n, T(0));
    for (std::size_t k = 0; k < a.size(); ++k) {
      if (!products.empty()) {
        sums[k * static_cast<std::size_t>(blocks) + static_cast<std::size_t>(i / kBlock)] =
            block_product(n, tensors.gradient + i, tensors.w[k] + i);
      }
      if (shared) {
        update_sharing(tensors, i, n, k, scale, a[k], a_next[k], scalars, root);
      } else {
        update_own(tensors, i, n, k, scale, a[k], a_next[k], scalars);
      }
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
