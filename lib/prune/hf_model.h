// A mixture of experts in a folder of Hugging Face's transformers: config.json and model.safetensors, or
// shards and model.safetensors.index.json. Untrusted; weights are mapped, not taken into memory.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "io/safetensors.h"
#include "prune/hf_layout.h"
#include "prune/selection.h"

namespace exfusion {

struct HfModel {
  std::filesystem::path folder;
  const HfLayout* layout = nullptr;
  std::string config;                  // the text of config.json
  std::string index;                   // that of model.safetensors.index.json; "": one file
  std::vector<SafetensorsFile> files;  // the weights
  std::int64_t experts = 0, top_k = 0;
  std::vector<std::int64_t> layers;  // those with experts, ascending
};

// Whether the folder's config.json is one of transformers (has a model_type).
bool is_hf_model(const std::filesystem::path& folder);

// Checks config, index, names and shapes: every layer with a router has all experts that the config says, of
// one shape. Throws FormatError, FileError.
HfModel read_hf_model(const std::filesystem::path& folder);

// A score of prune/weight_scores.h, tensor by tensor.
ScoresByLayer weight_scores(const HfModel& model, const std::string& score);

}  // namespace exfusion
