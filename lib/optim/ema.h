// Exponential moving average of the dense parameters (fp32): ema = decay * ema + (1 - decay) * values after
// each step.
#pragma once
#include <ATen/core/Tensor.h>

#include "io/safetensors.h"
#include "optim/flat_parameters.h"

namespace exfusion {

class WeightEma {
 public:
  WeightEma(const FlatParameters& parameters, double decay);  // starts at the parameters
  void update();
  NamedTensors state() const;  // NAME -> view, for checkpoints, evaluation and export
  // Exchanges the averages with the parameters: call once before an evaluation and once after it.
  void swap();

 private:
  const FlatParameters& parameters_;
  double decay_;
  at::Tensor average_;
};

}  // namespace exfusion
