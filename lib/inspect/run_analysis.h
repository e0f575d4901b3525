// The analysis of a finished run, over all of its checkpoints, or of one checkpoint.
#pragma once
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace exfusion {

struct AnalysisRequest {
  std::vector<std::string> groups;     // none: all that apply to the model
  std::vector<std::string> data_sets;  // "root=DIR": overrides of the recipe's data section
  std::int64_t batches = 50;  // that the first held-out images are cut into, up to 64 in each; fewer where
                              // there are fewer images
};

struct RunAnalysis {
  nlohmann::ordered_json report;  // {layers, model} of the newest checkpoint; checkpoints: the same of those
                                  // before it, without knock-outs; training: congestion at the steps that
                                  // the run itself analysed
  std::string markdown;
};

// Held-out images are those of the validation set, or of the test set where the run has none. Throws
// UsageError, CheckpointError, FormatError, DataError, RecipeError; Interrupted by a signal.
RunAnalysis analyse_run(const std::filesystem::path& path, const AnalysisRequest& request);

}  // namespace exfusion
