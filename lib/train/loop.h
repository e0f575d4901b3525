// A run from its first to its last step.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "train/run_config.h"
#include "train/run_folder.h"

namespace exfusion {

struct RunOutcome {
  std::int64_t step = 0;
  double accuracy = 0.0;       // on the test set, in the run's precision
  double accuracy_fp32 = 0.0;  // the same model in fp32
  double best_accuracy = 0.0;
  std::string best_by;  // "validation" or "test"
  std::int64_t skipped = 0;
  bool already_finished = false;
  std::filesystem::path exported;  // the run's export/ folder
};

// Trains in `folder` and exports the last model to export/. With `resume`, goes on from the newest valid
// checkpoint (or from the start when there is none yet). `resolved` is the recipe's text. Throws Interrupted
// after a signal, once the step is done and saved; NonFiniteError after train.max_skipped skipped steps in a
// row.
RunOutcome run_training(const RunConfig& config, const std::string& resolved, const RunFolder& folder,
                        bool resume);

}  // namespace exfusion
