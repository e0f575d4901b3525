// How far a run is: one line that redraws itself on a terminal, and plain log lines now and then everywhere.
#pragma once
#include <cstdint>
#include <string>

#include "core/terminal_line.h"
#include "train/step.h"

namespace exfusion {

class Progress {
 public:
  // `step_flops`: matrix-multiply FLOPs of a step (forward and backward); `peak_flops`: what this machine's
  // matrix product reaches per second in the run's precision, measured at start; MFU is their ratio at the
  // current speed.
  Progress(std::int64_t first_step, std::int64_t total, std::int64_t steps_per_epoch,
           std::int64_t global_batch, double step_flops, double peak_flops);
  // After a step that took `seconds`, waiting for data included.
  void update(std::int64_t step, const StepResult& result, double seconds);

 private:
  std::string text(std::int64_t step, double lr) const;

  std::int64_t total_, steps_per_epoch_, global_batch_;
  double step_flops_, peak_flops_;
  double mean_seconds_ = 0.0, mean_loss_ = 0.0;  // exponential means, for display only
  std::int64_t seen_ = 0;
  TerminalLine line_;
};

// FLOP/s of a square matrix product in this precision with the threads set, best of a few.
double measure_peak_flops(const std::string& precision);

}  // namespace exfusion
