#include "core/grid_launch.cuh"
#include "fusion/fused_update_cuda.h"
#include "fusion/fused_walk.h"

namespace exfusion {

void fused_update_cuda(const ExpertTensors<float>& tensors, std::span<const float> a,
                       std::span<const float> a_next, float scale, const AdamWScalars<float>& scalars,
                       void* stream) {
  const FusedWalk walk(tensors, a, a_next, scale, scalars);
  launch_packs("fused_update", tensors.size, walk, stream);
}

void fuse_experts_cuda(const ExpertTensors<float>& tensors, std::span<const float> a, void* stream) {
  const FuseWalk walk(tensors, a);
  launch_packs("fuse_experts", tensors.size, walk, stream);
}

}  // namespace exfusion
