// Where a run computes.
#pragma once
#include <c10/core/Device.h>

#include <string>

namespace exfusion {

// The device that train.device names: cpu, or cuda, the first one that this process sees
// (CUDA_VISIBLE_DEVICES chooses). Throws UsageError where there is none.
c10::Device training_device(const std::string& name);

}  // namespace exfusion
