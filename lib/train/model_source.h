// A trained model read back from wherever one lies: a run, a checkpoint, or an exported folder.
#pragma once
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "models/model.h"
#include "train/run_config.h"

namespace exfusion {

struct LoadedModel {
  std::shared_ptr<Model> model;  // in evaluation mode
  ModelConfig config;
  std::vector<double> mean, std;  // of the pixels, per channel
  std::optional<RunConfig> run;   // absent for an exported folder
  std::string recipe_crc32;       // "" when not known
  std::string what;               // last, best, ema
  std::int64_t step = -1;
  std::optional<double> test_accuracy;  // in fp32 where known, else in the run's precision
  std::filesystem::path origin;         // the checkpoint or export folder that was read
};

// `what`: last, best, ema (of the newest checkpoint). An exported folder and a checkpoint know only one
// model, so there `best` is refused. Throws CheckpointError, FormatError.
LoadedModel load_model(const std::filesystem::path& path, const std::string& what);

// Copies the tensors of a safetensors file into the model: every parameter and buffer must be there with its
// shape, with finite values, and nothing else.
void load_weights(const std::filesystem::path& file, Model& model);

}  // namespace exfusion
