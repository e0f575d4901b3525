// The precision of the forward pass, for as long as the object lives: bf16 switches the device's autocast on
// in this thread (matrix products in bf16; parameters, gradients, moments and sums stay fp32), fp32 changes
// nothing.
#pragma once
#include <c10/core/DeviceType.h>

#include <string>

namespace exfusion {

class PrecisionScope {
 public:
  explicit PrecisionScope(const std::string& precision, c10::DeviceType device = c10::kCPU);  // fp32, bf16
  ~PrecisionScope();
  PrecisionScope(const PrecisionScope&) = delete;
  PrecisionScope& operator=(const PrecisionScope&) = delete;

 private:
  bool active_, was_enabled_ = false;
  c10::DeviceType device_;
};

}  // namespace exfusion
