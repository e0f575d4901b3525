// One training of a comparison: where it lies, how it is started, and what is kept of it once it is finished.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "compare/arms.h"
#include "compare/runner.h"

namespace exfusion {

struct PlannedRun {
  std::string name;   // "steps/memory/seed-3": its folder below DIR/runs, and .log and .json beside it
  std::string title;  // for people: "memory seed 3"
  std::string arm;
  std::string value;  // of the grid; "": not tuned
  std::uint64_t seed = 0;
  std::vector<std::string> sets;
  std::string scaled_by;  // the run that dense_lr_scaled takes its scale from; "": none
  Scored scored = Scored::model;
};

// What a finished run leaves for the comparison. Accuracies are fractions, times seconds.
struct RunResult {
  bool identical_to_dense = false;  // dense_lr_scaled where the scale is 1: refused, nothing else is known
  std::int64_t steps = 0;
  double accuracy = 0.0;  // test set, in the run's precision, of what the arm is scored by
  std::optional<double> validation_accuracy;  // of the trained model; where images are held out
  double step_time = 0.0;                     // median over the steps
  double seconds = 0.0;                       // of training: mean step time times steps
  // As metrics.h5 has them in /cost; nullopt in a run that recorded none.
  std::optional<double> flops_per_sample, parameters_training, parameters_deployed, peak_memory;
};

// How the runs of one comparison are started.
struct Launch {
  std::filesystem::path programs;     // the folder of exfusion-train, -export and -eval
  std::filesystem::path runs;         // DIR/runs
  std::string recipe;                 // the file
  std::string data, root, precision;  // for evaluating a soup, which does not know its data
};

// The commands of a run: from the start, or on from where an interrupted one stopped.
Job run_job(const Launch& launch, const PlannedRun& run);

// The kept result of a finished run; nullopt when it is not finished. Throws FormatError.
std::optional<RunResult> kept_result(const Launch& launch, const PlannedRun& run);

// Reads the result of a run whose job has just ended well, and keeps it. Throws FormatError, FileError.
RunResult keep_result(const Launch& launch, const PlannedRun& run);
// The same for one that exfusion-train refused as identical to dense.
RunResult keep_identical(const Launch& launch, const PlannedRun& run);

}  // namespace exfusion
