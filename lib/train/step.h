// One optimizer step.
#pragma once
#include <cstdint>

#include "data/loader.h"
#include "train/profile.h"
#include "train/run_config.h"
#include "train/training_state.h"

namespace exfusion {

struct StepResult {
  double loss = 0.0;       // mean cross entropy over the global batch (without the FFNs' auxiliary losses)
  double grad_norm = 0.0;  // over all dense parameters, the fused gradients among them, before clipping
  double lr = 0.0;
  bool skipped = false;   // non-finite: nothing was changed
  int signal = 0;         // that a rank had received when it took part in the sums of this step; 0: none
  PhaseSeconds phases{};  // where its time went
};

// Forward, backward, clip and update with this rank's rows of one global batch, in micro-batches or leaves.
// `total` and `steps_per_epoch` place the step in the schedules. (design: train.clip bounds the norm over the
// dense model's parameters, a and router left out.)
StepResult train_step(const RunConfig& config, TrainingState& state, const Batch& batch, std::int64_t total,
                      std::int64_t steps_per_epoch);

}  // namespace exfusion
