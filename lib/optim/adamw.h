// Dense AdamW over flat buffers.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "io/safetensors.h"
#include "optim/adamw_kernel.h"
#include "optim/flat_parameters.h"
#include "optim/schedule.h"

namespace exfusion {

class Section;

struct AdamWConfig {
  double lr = 1e-3, weight_decay = 0.05, beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  ScheduleConfig schedule;
  static AdamWConfig parse(Section section);  // of the recipe's `optim` section
};

// The scalars of the update number `update` (from 1) at learning rate `lr`.
template <class T>
AdamWScalars<T> adamw_scalars(const AdamWConfig& config, double lr, double weight_decay, std::int64_t update);

// Moments and update of the slots [first, last) of a flat buffer.
class DenseAdamW {
 public:
  DenseAdamW(FlatParameters& parameters, std::size_t first_slot, std::size_t last_slot);
  void step(const AdamWConfig& config, double lr, std::int64_t update, float gradient_scale);
  // "exp_avg.NAME" and "exp_avg_sq.NAME" per parameter: views, for checkpoints (copy into them to restore).
  // Where slots have an lr_scale, "lr_scale" [slots] F64 as well: it is in the optimizer from its making on.
  NamedTensors state() const;

 private:
  FlatParameters& parameters_;
  std::size_t first_slot_, last_slot_;
  at::Tensor exp_avg_, exp_avg_sq_;  // flat, as the slots lie
  at::Tensor lr_scale_;              // [slots] double; undefined: all 1
};

}  // namespace exfusion
