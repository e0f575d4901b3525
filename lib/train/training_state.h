// What changes from step to step.
#pragma once
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "dist/gradient_exchange.h"
#include "fusion/expert_bank.h"
#include "models/model.h"
#include "optim/adamw.h"
#include "optim/ema.h"
#include "optim/flat_parameters.h"
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
  // The ranks that train together, and how they sum their gradients; one rank alone has a group of itself.
  ProcessGroup group;
  std::unique_ptr<GradientExchange> exchange;
};

// Builds the model, its flat buffers, the banks and the optimizer from the recipe. Without `load_source`,
// what init_from or fusion.from names is not read: a checkpoint is about to replace all of it. Every rank of
// `group` makes the same state, and keeps its own part of what dist.shard shards.
TrainingState make_training_state(const RunConfig& config, bool load_source = true, ProcessGroup group = {});

}  // namespace exfusion
