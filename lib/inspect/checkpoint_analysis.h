// Everything that is measured of one checkpoint: what its experts do on held-out images, and what the model
// loses without them.
#pragma once
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "inspect/checkpoint_reader.h"
#include "observe/held_out.h"

namespace exfusion {

std::vector<std::string> inspection_group_names();  // those of a recipe's analysis, and causal

// The experts of a model: "topk", "fused", or "dense" for none (or of a kind that is not analysed).
std::string experts_kind(const ReadCheckpoint& checkpoint);

// The groups that apply to the model among those asked for; none asked for, or `all`: all. Throws UsageError
// for an unknown one, and for one that was asked for and does not apply.
std::vector<std::string> applying_groups(const ReadCheckpoint& checkpoint,
                                         const std::vector<std::string>& given);

struct CheckpointAnalysis {
  nlohmann::ordered_json layers, model;  // docs/metrics.md
  std::string routing;                   // Markdown about routing and its scores; "" without top-k experts
};
// `title` heads the Markdown; `progress` gets the part that is done of the knock-outs, and may throw.
CheckpointAnalysis analyse_checkpoint(ReadCheckpoint& checkpoint, const std::vector<HeldOutBatch>& batches,
                                      const std::vector<std::string>& groups, const std::string& title,
                                      const std::function<void(double)>& progress);

}  // namespace exfusion
