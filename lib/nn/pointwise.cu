#include "core/grid_launch.cuh"
#include "nn/pointwise_cuda.h"

namespace exfusion {
namespace {

// The sum over the lanes of a row, on each of them.
__device__ float row_sum(float x) {
  for (int step = kRowLanes / 2; step >= 1; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

__global__ void __launch_bounds__(kBlockThreads)
    residual_norm_kernel(const __grid_constant__ ResidualNorm work) {
  static_assert(kRowLanes == 32 && kBlockThreads % kRowLanes == 0);
  const std::int64_t lane = threadIdx.x % kRowLanes;
  for (std::int64_t row = grid_thread() / kRowLanes; row < work.rows; row += grid_threads() / kRowLanes) {
    const auto dim = static_cast<float>(work.columns);
    const float mean = row_sum(work.lane_sum(row, lane)) / dim;
    const float inverse = inverse_deviation(row_sum(work.lane_squares(row, lane, mean)), dim, work.eps);
    work.write(row, lane, mean, inverse);
  }
}

__global__ void __launch_bounds__(kBlockThreads)
    residual_norm_gradient_kernel(const __grid_constant__ ResidualNormGradient work) {
  const std::int64_t lane = threadIdx.x % kRowLanes;
  for (std::int64_t row = grid_thread() / kRowLanes; row < work.rows; row += grid_threads() / kRowLanes) {
    const ResidualNormGradient::Sums part = work.lane_sums(row, lane);
    work.write(row, lane, {row_sum(part.s), row_sum(part.s_normalised)});
  }
}

template <class Work>
void launch_rows(const char* name, void (*kernel)(Work), const Work& work, void* stream) {
  if (work.rows == 0) return;
  const auto blocks = static_cast<unsigned>(grid_blocks(work.rows * kRowLanes));
  kernel<<<blocks, kBlockThreads, 0, static_cast<cudaStream_t>(stream)>>>(work);
  check_launch(name);
}

}  // namespace

void bias_gelu_cuda(std::int64_t rows, const BiasGelu& work, void* stream) {
  launch_packs("bias_gelu", rows * work.columns, work, stream);
}

void bias_gelu_gradient_cuda(std::int64_t rows, const BiasGeluGradient& work, void* stream) {
  launch_packs("bias_gelu_gradient", rows * work.columns, work, stream);
}

void residual_norm_cuda(const ResidualNorm& work, void* stream) {
  launch_rows("residual_norm", residual_norm_kernel, work, stream);
}

void residual_norm_gradient_cuda(const ResidualNormGradient& work, void* stream) {
  launch_rows("residual_norm_gradient", residual_norm_gradient_kernel, work, stream);
}

void norm_parameter_gradient_cuda(const NormParameterGradient& work, void* stream) {
  launch_walk<1>("norm_parameter_gradient", work.elements(), work, stream);
}

}  // namespace exfusion
