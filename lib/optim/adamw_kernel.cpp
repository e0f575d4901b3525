#include "optim/adamw_kernel.h"

#include <algorithm>

#include "core/instruction_sets.h"
#include "optim/bf16_kernel.h"

namespace exfusion {
namespace {

constexpr std::int64_t kBlock = 4096;              // elements that one call of the kernel walks over
constexpr std::int64_t kParallelElements = 32768;  // below, starting threads costs more than it saves

template <class T>
inline void update_block(std::int64_t n, T* __restrict w, T* __restrict m, T* __restrict v,
                         const T* __restrict g, T scale, const AdamWScalars<T>& scalars) {
  const AdamWScalars<T> s = scalars;  // a local copy cannot alias the arrays
  for (std::int64_t i = 0; i < n; ++i) adamw_element(w[i], m[i], v[i], scale * g[i], s);
}

EXFUSION_INSTRUCTION_SETS
void adamw_block(std::int64_t n, float* w, float* m, float* v, const float* g, float scale,
                 const AdamWScalars<float>& scalars) {
  update_block(n, w, m, v, g, scale, scalars);
}

EXFUSION_INSTRUCTION_SETS
void adamw_block(std::int64_t n, double* w, double* m, double* v, const double* g, double scale,
                 const AdamWScalars<double>& scalars) {
  update_block(n, w, m, v, g, scale, scalars);
}

}  // namespace

template <class T>
void adamw_update(std::int64_t n, T* w, T* m, T* v, const T* g, T scale, const AdamWScalars<T>& scalars,
                  std::uint16_t* bf16) {
#pragma omp parallel for schedule(static) if (n >= kParallelElements)
  for (std::int64_t i = 0; i < n; i += kBlock) {
    const std::int64_t count = std::min(kBlock, n - i);
    adamw_block(count, w + i, m + i, v + i, g + i, scale, scalars);
    if (bf16) round_block(count, w + i, bf16 + i);
  }
}

template void adamw_update(std::int64_t, float*, float*, float*, const float*, float,
                           const AdamWScalars<float>&, std::uint16_t*);
template void adamw_update(std::int64_t, double*, double*, double*, const double*, double,
                           const AdamWScalars<double>&, std::uint16_t*);

}  // namespace exfusion
