// The precision of the forward pass, for as long as the object lives: bf16 switches CPU autocast on in this
// thread (matrix products in bf16; parameters, gradients, moments and sums stay fp32), fp32 changes nothing.
#pragma once
#include <string>

namespace exfusion {

class PrecisionScope {
 public:
  explicit PrecisionScope(const std::string& precision);  // fp32, bf16
  ~PrecisionScope();
  PrecisionScope(const PrecisionScope&) = delete;
  PrecisionScope& operator=(const PrecisionScope&) = delete;

 private:
  bool active_, was_enabled_ = false;
};

}  // namespace exfusion
