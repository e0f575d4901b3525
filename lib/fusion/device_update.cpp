#include "fusion/device_update.h"

#include <c10/core/DeviceGuard.h>

#include <vector>

#include "fusion/fused_update_cuda.h"
#include "optim/device.h"

namespace exfusion {

void fused_update_on(c10::Device device, const ExpertTensors<float>& tensors, std::span<const float> a,
                     std::span<const float> a_next, float scale, const AdamWScalars<float>& scalars,
                     std::span<double> products) {
  if (!device.is_cuda()) return fused_update(tensors, a, a_next, scale, scalars, products);
  const c10::DeviceGuard guard(device);
  if (!products.empty()) {  // of the experts before the update
    const std::vector<const float*> w(tensors.w.begin(), tensors.w.end());
    inner_products_on(device, tensors.gradient, w, tensors.size, products);
  }
  fused_update_cuda(tensors, a, a_next, scale, scalars, current_stream(device));
}

void fuse_experts_on(c10::Device device, const ExpertTensors<float>& tensors, std::span<const float> a) {
  if (!device.is_cuda()) return fuse_experts(tensors, a);
  const c10::DeviceGuard guard(device);
  fuse_experts_cuda(tensors, a, current_stream(device));
}

}  // namespace exfusion
