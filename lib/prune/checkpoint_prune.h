// One-shot pruning of a topk model of ours.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "prune/selection.h"
#include "train/model_source.h"

namespace exfusion {

// The blocks whose FFN is a mixture of experts, ascending. Throws CheckpointError for a model without: top-k
// routers alone send tokens to experts that can be taken out.
std::vector<std::int64_t> topk_blocks(const LoadedModel& model);

// A score of prune/weight_scores.h, by block.
ScoresByLayer weight_scores(const LoadedModel& model, const std::string& score);

// The model with these experts alone, numbered anew in their order; gates as in training, over what remains.
// `kept` has every block of topk_blocks, with as many experts each. `what` says how, for the model card.
LoadedModel pruned(const LoadedModel& model, const KeptExperts& kept, const std::string& what);

}  // namespace exfusion
