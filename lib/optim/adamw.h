// Dense AdamW over flat buffers.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "io/safetensors.h"
#include "io/tensor_part.h"
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
  // Elements [first, second) of a slot that are this rank's to update.
  using Range = std::pair<std::int64_t, std::int64_t>;
  // `owned`: a range for each of these slots; empty: all of all.
  DenseAdamW(FlatParameters& parameters, std::size_t first_slot, std::size_t last_slot,
             std::vector<Range> owned = {});
  void step(const AdamWConfig& config, double lr, std::int64_t update, float gradient_scale);
  // "exp_avg.NAME" and "exp_avg_sq.NAME" per parameter: views, for checkpoints (copy into them to restore).
  // Where slots have an lr_scale, "lr_scale" [slots] F64 as well: it is in the optimizer from its making on.
  TensorParts parts() const;
  NamedTensors state() const;  // the values of these parts
  std::int64_t size() const;   // numbers of each moment on this rank, padding left out

 private:
  FlatParameters& parameters_;
  std::size_t first_slot_, last_slot_;
  std::vector<Range> owned_;
  std::vector<std::int64_t> places_;  // of the slots' owned parts in the moments
  at::Tensor exp_avg_, exp_avg_sq_;   // flat, as the slots lie
  at::Tensor lr_scale_;               // [slots] double; undefined: all 1
};

}  // namespace exfusion
