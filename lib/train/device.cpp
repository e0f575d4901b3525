#include "train/device.h"

#include <ATen/Context.h>

#include "core/error.h"
#include "optim/cuda_kernels.h"

namespace exfusion {

c10::Device training_device(const std::string& name) {
  if (name == "cpu") return c10::kCPU;
  if (!built_with_cuda())
    throw UsageError("train.device: cuda: this build has no CUDA (./dev build cuda makes one that has)");
  if (!at::hasCUDA()) throw UsageError("train.device: cuda: no CUDA device found");
  return {c10::kCUDA, 0};
}

}  // namespace exfusion
