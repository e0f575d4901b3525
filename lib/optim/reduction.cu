#include "core/grid_launch.cuh"
#include "optim/cuda_kernels.h"
#include "optim/reduction_walk.h"

namespace exfusion {
namespace {

// Half a warp is one block of the reduction; its lanes are added as the tree says.
__global__ void __launch_bounds__(kBlockThreads)
    block_products_kernel(const __grid_constant__ BlockProducts products) {
  static_assert(kReductionLanes == 16 && kBlockThreads % 32 == 0);
  const std::int64_t lane = grid_thread() % kReductionLanes, stride = grid_threads() / kReductionLanes;
  // Both halves of a warp go round together: shuffles need every lane.
  for (std::int64_t item = grid_thread() / kReductionLanes; item - item % 2 < products.items();
       item += stride) {
    double sum = item < products.items() ? products.lane_sum(item, lane) : 0.0;
    for (int step = kReductionLanes / 2; step >= 1; step /= 2)
      sum += __shfl_down_sync(0xffffffffu, sum, step, kReductionLanes);
    if (lane == 0 && item < products.items()) products.sums[item] = sum;
  }
}

// Block k of the grid adds the sums of vector k.
__global__ void __launch_bounds__(kBlockThreads) tree_kernel(double* sums, std::int64_t n, double* result) {
  double* x = sums + blockIdx.x * n;
  std::int64_t left = n;
  for (std::int64_t step = tree_step(n); step >= 1; step /= 2) {
    tree_level(x, left, step, threadIdx.x, blockDim.x);
    left = left < step ? left : step;
    __syncthreads();
  }
  if (threadIdx.x == 0) result[blockIdx.x] = x[0];
}

}  // namespace

void inner_products_cuda(const float* g, std::span<const float* const> w, std::int64_t n, bool in_double,
                         double* sums, double* result, void* stream) {
  BlockProducts products{g, {}, n, static_cast<std::int64_t>(w.size()), sums, in_double};
  std::copy(w.begin(), w.end(), products.w);
  const auto on = static_cast<cudaStream_t>(stream);
  const auto blocks = static_cast<unsigned>(grid_blocks(products.items() * kReductionLanes));
  block_products_kernel<<<blocks, kBlockThreads, 0, on>>>(products);
  check_launch("block_products");
  tree_kernel<<<static_cast<unsigned>(w.size()), kBlockThreads, 0, on>>>(sums, products.blocks(), result);
  check_launch("tree");
}

}  // namespace exfusion
