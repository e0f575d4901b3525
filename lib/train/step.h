// One optimizer step: what changes from step to step, and how.
#pragma once
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "data/loader.h"
#include "fusion/expert_bank.h"
#include "models/model.h"
#include "optim/adamw.h"
#include "optim/ema.h"
#include "optim/flat_parameters.h"
#include "train/profile.h"
#include "train/run_config.h"

namespace exfusion {

// Everything that a checkpoint holds. Dense training is the same state with no banks.
struct TrainingState {
  std::shared_ptr<Model> model;
  std::unique_ptr<FlatParameters> parameters;  // dense parameters first, then the fused FFNs
  std::unique_ptr<DenseAdamW> dense;           // of the parameters outside the banks
  std::deque<ExpertBank> banks;                // a deque: FFNs hold on to their bank's address
  std::vector<std::shared_ptr<FeedForward>> feed_forwards;
  std::unique_ptr<WeightEma> ema;  // null: off
  std::int64_t step = 0;           // finished steps, skipped ones among them
  std::int64_t updates = 0;        // steps that updated: AdamW's bias correction counts these
  std::int64_t skipped = 0, skipped_in_row = 0;
  double decay_product = 1.0;  // of 1 - lr weight_decay over all updates: what decay alone leaves of a weight
};

// Builds the model, its flat buffers, the banks and the optimizer from the recipe. Without `load_source`,
// what init_from or fusion.from names is not read: a checkpoint is about to replace all of it.
TrainingState make_training_state(const RunConfig& config, bool load_source = true);

struct StepResult {
  double loss = 0.0;       // mean cross entropy over the global batch (without the FFNs' auxiliary losses)
  double grad_norm = 0.0;  // over all dense parameters, the fused gradients among them, before clipping
  double lr = 0.0;
  bool skipped = false;   // non-finite: nothing was changed
  PhaseSeconds phases{};  // where its time went
};

// Forward, backward, clip and update with one global batch, in micro-batches. `total` and `steps_per_epoch`
// place the step in the schedules. (design: train.clip bounds the norm over the dense model's parameters, a
// and router left out.)
StepResult train_step(const RunConfig& config, TrainingState& state, const Batch& batch, std::int64_t total,
                      std::int64_t steps_per_epoch);

}  // namespace exfusion
