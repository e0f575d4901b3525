// The fixed tree of optim/reduction.h, shared out over the threads of a grid: the same sums, the same bits.
#pragma once
#include <algorithm>
#include <cstdint>

#include "core/host_device.h"
#include "optim/reduction.h"

namespace exfusion {

inline constexpr int kMaxProducts = 64;  // vectors in one call: as many as an FFN may have experts

// The sums over blocks of <g, w[k]>, k < vectors: thread t of the grid has lane t mod kReductionLanes of the
// (t / kReductionLanes)-th of vectors * blocks sums, which lie in `sums` [vectors, blocks].
struct BlockProducts {
  const float* g;
  const float* w[kMaxProducts];
  std::int64_t n, vectors;
  double* sums;
  bool in_double;  // each product, as sum_of_squares wants it

  EXFUSION_HOST_DEVICE std::int64_t blocks() const { return (n + kReductionBlock - 1) / kReductionBlock; }
  EXFUSION_HOST_DEVICE std::int64_t items() const { return vectors * blocks(); }
  EXFUSION_HOST_DEVICE double lane_sum(std::int64_t item, std::int64_t lane) const {
    const std::int64_t begin = item % blocks() * kReductionBlock;
    const std::int64_t end = n - begin < kReductionBlock ? n : begin + kReductionBlock;
    const float* x = w[item / blocks()];
    double sum = 0.0;
    std::int64_t i = begin + lane;
    if (!in_double) {
      for (; i - lane + kReductionGroup <= end; i += kReductionGroup) sum += lane_product(g + i, x + i);
    }
    for (; i < end; i += kReductionLanes) sum += static_cast<double>(g[i]) * static_cast<double>(x[i]);
    return sum;
  }
};

// The largest power of two below n, 0 for n = 1: the step of the tree's first level over n numbers.
EXFUSION_HOST_DEVICE inline std::int64_t tree_step(std::int64_t n) {
  if (n < 2) return 0;
  std::int64_t step = 1;
  while (2 * step < n) step *= 2;
  return step;
}

// One thread's part of a level: x[j] += x[j + step] for j + step < n. Afterwards min(n, step) numbers are
// left.
EXFUSION_HOST_DEVICE inline void tree_level(double* x, std::int64_t n, std::int64_t step, std::int64_t thread,
                                            std::int64_t threads) {
  for (std::int64_t j = thread; j + step < n; j += threads) x[j] += x[j + step];
}

}  // namespace exfusion
