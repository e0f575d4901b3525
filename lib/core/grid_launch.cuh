// Launches for the .cu files. Nothing here allocates or waits, so a launch can be recorded in a CUDA graph.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "core/error.h"
#include "core/grid_walk.h"

namespace exfusion {

// A launch that the driver refuses; errors inside a kernel appear at the next call that waits.
inline void check_launch(const char* kernel) {
  if (const cudaError_t code = cudaGetLastError(); code != cudaSuccess)
    throw Failure(std::string(kernel) + ": CUDA refused the launch: " + cudaGetErrorString(code));
}

__device__ inline std::int64_t grid_thread() {
  return static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

__device__ inline std::int64_t grid_threads() {
  return static_cast<std::int64_t>(gridDim.x) * blockDim.x;
}

template <int width, class Body>
__global__ void __launch_bounds__(kBlockThreads)
    walk_kernel(std::int64_t n, const __grid_constant__ Body body) {
  walk<width>(n, grid_thread(), grid_threads(), body);
}

// `stream` is a cudaStream_t.
template <int width, class Body>
void launch_walk(const char* kernel, std::int64_t n, const Body& body, void* stream) {
  static_assert(sizeof(Body) <= 4000, "kernel arguments have 4 KB");
  if (n == 0) return;
  const auto blocks = static_cast<unsigned>(walk_blocks(n, width));
  walk_kernel<width><<<blocks, kBlockThreads, 0, static_cast<cudaStream_t>(stream)>>>(n, body);
  check_launch(kernel);
}

// In packs where the body's arrays allow it.
template <class Body>
void launch_packs(const char* kernel, std::int64_t n, const Body& body, void* stream) {
  if (body.fits())
    launch_walk<kVectorWidth>(kernel, n, body, stream);
  else
    launch_walk<1>(kernel, n, body, stream);
}

}  // namespace exfusion
