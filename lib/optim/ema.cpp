#include "optim/ema.h"

#include <ATen/ATen.h>

namespace exfusion {

WeightEma::WeightEma(const FlatParameters& parameters, double decay)
    : parameters_(parameters), decay_(decay), average_(parameters.values().clone()) {}

// As average + (1 - decay) (values - average): one walk, and weights that rest keep their bits.
void WeightEma::update() {
  average_.lerp_(parameters_.values(), 1.0 - decay_);
}

NamedTensors WeightEma::state() const {
  NamedTensors state;
  for (const ParameterSlot& slot : parameters_.slots()) {
    state.emplace_back(slot.name, average_.narrow(0, slot.offset, slot.size).view(slot.parameter.sizes()));
  }
  return state;
}

void WeightEma::swap() {
  const at::Tensor average = average_.clone();
  average_.copy_(parameters_.values());
  parameters_.values().copy_(average);
  parameters_.round_bf16();
}

}  // namespace exfusion
