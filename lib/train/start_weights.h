// The first weights of a run whose recipe names a trained model: init_from (go on with it) or fusion.from
// (upcycle it). docs/upcycling.md.
#pragma once
#include <cstdint>
#include <deque>
#include <filesystem>
#include <optional>
#include <string>

#include "fusion/expert_bank.h"
#include "models/model.h"
#include "train/run_config.h"

namespace exfusion {

struct DenseSource {
  std::filesystem::path file;         // safetensors
  std::optional<std::int64_t> heads;  // attention heads, which the tensors do not show; absent: not known
};

// `path` is a safetensors file, a folder with model.safetensors (timm's, an export, one of exfusion-upcycle),
// a checkpoint, or a run (its newest checkpoint). Throws FormatError, CheckpointError.
DenseSource find_dense_source(const std::filesystem::path& path);

// Throws UsageError if something that the run starts from lies in `folder`, which is about to be overwritten.
void check_sources_are_outside(const RunConfig& config, const std::filesystem::path& folder);

// Between make_model and the banks: loads what init_from or fusion.from names and logs what became of each
// tensor; nothing if neither is given. Throws FormatError, CheckpointError, RecipeError (`fusion.init` and
// what lies in fusion.from do not go together).
void load_start_weights(const RunConfig& config, Model& model);

// After the banks: if fusion.from is a folder of exfusion-upcycle, puts its experts into them and fuses; else
// nothing. Throws RecipeError where experts or layers differ from the recipe's, FormatError.
void load_stored_experts(const RunConfig& config, std::deque<ExpertBank>& banks);

}  // namespace exfusion
