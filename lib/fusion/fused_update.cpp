#include "fusion/fused_update.h"

#include <algorithm>

#include "core/bfloat16.h"
#include "core/instruction_sets.h"
#include "optim/bf16_kernel.h"
#include "optim/reduction.h"

namespace exfusion {
namespace {

constexpr std::int64_t kParallelElements = 16384;  // below, starting threads costs more than it saves
constexpr std::int64_t kAhead = 2048;              // bytes: what is fetched before the processor asks for it

// One expert's part of a block.
template <class T>
struct ExpertBlock {
  T *w, *m, *v;
};

// Expert by expert what fused_element does element by element: same operations, same order. `fused` becomes
// `sum`, which may be the same array, plus this expert's part; `lanes`, if given, what inner_products wants
// of the block; `bf16`, if given, what `fused` rounds to. Meanwhile the arrays are fetched up to kAhead, over
// the end into `next`, what comes after this block: at each jump from one expert to another the hardware's
// own prefetching starts anew.
template <class T>
inline void update_expert(std::int64_t n, T* fused, const T* sum, const T* __restrict g,
                          const ExpertBlock<T>& block, const ExpertBlock<T>& next, T scale, T a, T a_next,
                          const AdamWScalars<T>& scalars, double* __restrict lanes,
                          std::uint16_t* __restrict bf16) {
  constexpr auto kBytes = static_cast<std::int64_t>(sizeof(T));
  const AdamWScalars<T> s = scalars;  // a local copy cannot alias the arrays
  T* __restrict w = block.w, * __restrict m = block.m, * __restrict v = block.v;
  double products[kReductionLanes] = {};
  std::int64_t i = 0;
  for (; i + kReductionGroup <= n; i += kReductionGroup) {
    const std::int64_t ahead = i + kAhead / kBytes;
    const ExpertBlock<T> fetched =
        ahead < n ? ExpertBlock<T>{w + ahead, m + ahead, v + ahead}
                  : ExpertBlock<T>{next.w + (ahead - n), next.m + (ahead - n), next.v + (ahead - n)};
    for (std::int64_t j = 0; j < kReductionGroup; j += 64 / kBytes) {
      __builtin_prefetch(fetched.w + j);
      __builtin_prefetch(fetched.m + j);
      __builtin_prefetch(fetched.v + j);
      if (sum != fused) {  // at the first expert these are not in the cache either
        __builtin_prefetch(g + ahead + j);
        __builtin_prefetch(fused + ahead + j);
      }
    }
    if (lanes) {
      for (std::int64_t j = 0; j < kReductionLanes; ++j) products[j] += lane_product(g + i + j, w + i + j);
    }
#pragma GCC ivdep
    for (std::int64_t j = i; j < i + kReductionGroup; ++j) {
      adamw_element(w[j], m[j], v[j], a * (scale * g[j]), s);
      fused[j] = sum[j] + a_next * w[j];
    }
    if (bf16) {
#pragma GCC ivdep
      for (std::int64_t j = i; j < i + kReductionGroup; ++j)
        bf16[j] = bf16_element(static_cast<float>(fused[j]));
    }
  }
  for (; i < n; ++i) {
    products[i % kReductionLanes] += static_cast<double>(g[i]) * static_cast<double>(w[i]);
    adamw_element(w[i], m[i], v[i], a * (scale * g[i]), s);
    fused[i] = sum[i] + a_next * w[i];
    if (bf16) bf16[i] = bf16_element(static_cast<float>(fused[i]));
  }
  if (lanes) std::copy_n(products, kReductionLanes, lanes);
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
void update_block(std::int64_t n, float* fused, const float* sum, const float* g,
                  const ExpertBlock<float>& block, const ExpertBlock<float>& next, float scale, float a,
                  float a_next, const AdamWScalars<float>& scalars, double* lanes, std::uint16_t* bf16) {
  update_expert(n, fused, sum, g, block, next, scale, a, a_next, scalars, lanes, bf16);
}

EXFUSION_INSTRUCTION_SETS
void update_block(std::int64_t n, double* fused, const double* sum, const double* g,
                  const ExpertBlock<double>& block, const ExpertBlock<double>& next, double scale, double a,
                  double a_next, const AdamWScalars<double>& scalars, double* lanes, std::uint16_t* bf16) {
  update_expert(n, fused, sum, g, block, next, scale, a, a_next, scalars, lanes, bf16);
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

template <class T>
constexpr T kZeros[kReductionBlock] = {};

// Expert k of the run of n elements that begins at `begin`, each expert with its moments; `sums` as in
// fused_update.
template <class T>
void update_own(const ExpertTensors<T>& tensors, std::int64_t begin, std::int64_t n, std::size_t k, T scale,
                T a, T a_next, const AdamWScalars<T>& scalars, double* sums) {
  const bool last = k + 1 == tensors.w.size();
  for (std::int64_t i = begin; i < begin + n; i += kReductionBlock) {
    const std::int64_t size = std::min(kReductionBlock, begin + n - i), after = i + size;
    // In the order of the walk; at its end one past the array, which does not matter.
    const ExpertBlock<T> next = after < begin + n ? block_of(tensors, k, after)
                                : last            ? block_of(tensors, 0, after)
                                                  : block_of(tensors, k + 1, begin);
    T* fused = tensors.fused + i;
    double lanes[kReductionLanes];
    update_block(size, fused, k == 0 ? kZeros<T> : fused, tensors.gradient + i, block_of(tensors, k, i), next,
                 scale, a, a_next, scalars, sums ? lanes : nullptr,
                 last && tensors.bf16 ? tensors.bf16 + i : nullptr);
    if (sums) sums[i / kReductionBlock] = sum_blocks(lanes, kReductionLanes);
  }
}

// The same for a block, with shared moments; `root` [n] is written at k = 0.
template <class T>
void update_sharing(const ExpertTensors<T>& tensors, std::int64_t begin, std::int64_t n, std::size_t k,
                    T scale, T a, T a_next, const AdamWScalars<T>& scalars, T* root, double* sums) {
  T *m = tensors.m[0] + begin, *fused = tensors.fused + begin;
  const T* g = tensors.gradient + begin;
  if (k == 0) {
    std::fill_n(fused, n, T(0));
    moments_block(n, g, m, tensors.v[0] + begin, root, scale, scalars);
  }
  if (sums) sums[begin / kReductionBlock] = block_product(n, g, tensors.w[k] + begin);
  sharing_block(n, fused, tensors.w[k] + begin, m, root, a, a_next, scalars);
  if (tensors.bf16 && k + 1 == tensors.w.size()) round_block(n, fused, tensors.bf16 + begin);
}

}  // namespace

template <class T>
void fused_update(const ExpertTensors<T>& tensors, std::span<const T> a, std::span<const T> a_next, T scale,
                  const AdamWScalars<T>& scalars, std::span<double> products) {
  const std::int64_t blocks = (tensors.size + kReductionBlock - 1) / kReductionBlock;
  const bool shared = tensors.m.size() < tensors.w.size();
  const std::int64_t run = shared ? kReductionBlock : run_length(tensors.size);
  // [N, blocks]: of each expert the sums over the blocks
  double* sums = block_sums(products.size() * static_cast<std::size_t>(blocks)).data();
#pragma omp parallel for schedule(static) if (tensors.size >= kParallelElements)
  for (std::int64_t i = 0; i < tensors.size; i += run) {
    const std::int64_t n = std::min(run, tensors.size - i);
    T root[kReductionBlock];
    for (std::size_t k = 0; k < a.size(); ++k) {
      double* own = products.empty() ? nullptr : sums + static_cast<std::int64_t>(k) * blocks;
      if (shared) {
        update_sharing(tensors, i, n, k, scale, a[k], a_next[k], scalars, root, own);
      } else {
        update_own(tensors, i, n, k, scale, a[k], a_next[k], scalars, own);
      }
    }
  }
  for (std::size_t k = 0; k < products.size(); ++k)
    products[k] = blocks > 0 ? sum_blocks(sums + static_cast<std::int64_t>(k) * blocks, blocks) : 0.0;
}

template <class T>
void fuse_experts(const ExpertTensors<T>& tensors, std::span<const T> a) {
#pragma omp parallel for schedule(static) if (tensors.size >= kParallelElements)
  for (std::int64_t i = 0; i < tensors.size; i += kReductionBlock) {
    const std::int64_t n = std::min(kReductionBlock, tensors.size - i);
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
