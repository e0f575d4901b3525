// The forward and backward passes of one step: gradients, loss and routing of the whole global batch,
// whichever ranks and micro-batches it is cut into.
#pragma once
#include <cstdint>
#include <utility>

#include "data/loader.h"
#include "train/step.h"
#include "train/training_state.h"

namespace exfusion {

// The rows [first, second) of every global batch that are this rank's: as even as leaves (dist.reduction:
// deterministic) or samples allow. Throws RecipeError if there are fewer of them than ranks.
std::pair<std::int64_t, std::int64_t> rows_of_rank(const RunConfig& config, int rank, int world);

// Runs the micro-batches, or leaves, of this rank's rows and sums over ranks: the gradients (of what
// dist.shard shards, this rank's part), `result`'s loss and signal, what the FFNs have counted, and the
// routing of `memory` weights. `signal`: what this rank has received.
void run_passes(const RunConfig& config, TrainingState& state, const Batch& batch, int signal,
                StepResult& result);

}  // namespace exfusion
