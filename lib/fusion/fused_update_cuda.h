// The CUDA twins of fused_update.h: `stream` is a cudaStream_t; they neither allocate nor wait. No torch
// here. A build without CUDA has these too; they throw Failure.
#pragma once
#include "fusion/fused_update.h"

namespace exfusion {

void fused_update_cuda(const ExpertTensors<float>& tensors, std::span<const float> a,
                       std::span<const float> a_next, float scale, const AdamWScalars<float>& scalars,
                       void* stream);
void fuse_experts_cuda(const ExpertTensors<float>& tensors, std::span<const float> a, void* stream);

}  // namespace exfusion
