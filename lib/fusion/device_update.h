// The one-pass update by device: the one place that chooses between the CPU's kernel and CUDA's.
#pragma once
#include <c10/core/Device.h>

#include "fusion/fused_update.h"

namespace exfusion {

// As fused_update and fuse_experts (fusion/fused_update.h), of arrays that lie on `device`. With `products` a
// CUDA device is waited for.
void fused_update_on(c10::Device device, const ExpertTensors<float>& tensors, std::span<const float> a,
                     std::span<const float> a_next, float scale, const AdamWScalars<float>& scalars,
                     std::span<double> products = {});
void fuse_experts_on(c10::Device device, const ExpertTensors<float>& tensors, std::span<const float> a);

}  // namespace exfusion
