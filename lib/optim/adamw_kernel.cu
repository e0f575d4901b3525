#include "core/grid_launch.cuh"
#include "optim/adamw_walk.h"
#include "optim/cuda_kernels.h"

namespace exfusion {

bool built_with_cuda() {
  return true;
}

void adamw_update_cuda(std::int64_t n, float* w, float* m, float* v, const float* g, float scale,
                       const AdamWScalars<float>& scalars, void* stream) {
  const AdamWWalk walk{w, m, v, g, scale, scalars};
  launch_packs("adamw_update", n, walk, stream);
}

}  // namespace exfusion
