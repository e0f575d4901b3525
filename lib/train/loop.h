// A run from its first to its last step.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "train/ranks.h"
#include "train/run_config.h"
#include "train/run_folder.h"

namespace exfusion {

struct RunOutcome {
  std::int64_t step = 0;
  std::int64_t skipped = 0;
  int signal = 0;  // that stopped the run before its end, after saving; then only what is above is known
  double accuracy = 0.0;       // on the test set, in the run's precision
  double accuracy_fp32 = 0.0;  // the same model in fp32
  double best_accuracy = 0.0;
  std::string best_by;  // "validation" or "test"
  bool already_finished = false;
  std::filesystem::path exported;  // the run's export/ folder
};

// Trains in `folder` and exports the last model to export/. With `resume`, goes on from the newest valid
// checkpoint (or from the start when there is none yet). `resolved` is the recipe's text. After a signal it
// ends once the step is done and saved. `profiled_steps`: of how many steps it logs a profile and writes
// profile.json (train/profile.h). Every rank calls it; the lead alone writes the folder. Throws
// NonFiniteError after train.max_skipped skipped steps in a row.
RunOutcome run_training(const RunConfig& config, const std::string& resolved, const RunFolder& folder,
                        bool resume, std::int64_t profiled_steps = 0, const Ranks& ranks = Ranks());

}  // namespace exfusion
