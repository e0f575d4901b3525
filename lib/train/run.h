// A run under way, and what happens to it beside its steps.
#pragma once
#include <cstdint>
#include <vector>

#include "data/dataset.h"
#include "observe/held_out.h"
#include "train/checkpoint.h"
#include "train/cost.h"
#include "train/metrics.h"
#include "train/ranks.h"
#include "train/run_folder.h"
#include "train/training_state.h"

namespace exfusion {

struct Run {
  const RunConfig& config;
  const RunFolder& folder;
  const Ranks& ranks;
  Datasets data;
  TrainingState state;
  CheckpointInfo record;  // what the next checkpoint will say
  std::int64_t steps_per_epoch = 0, total = 0;
  TrainingCost cost;
  double step_seconds = 0.0;  // of the steps that this process took
  std::int64_t steps_taken = 0, profiled_steps = 0;
  std::vector<HeldOutBatch> held_out;  // that analyses look at, from the first due step on
  double analysis_seconds = 0.0;       // train/analysis.h
  bool symmetry_stated = false;        // the alarm has said what it has to say
  bool shared_folder = true;           // every rank sees the run's folder
};

// Restores the newest valid checkpoint, if there is one; returns its step, or 0. Throws CheckpointError if
// the data or the recipe is another.
std::int64_t restore(Run& run);

// Evaluates at the current step, records, and remembers the best. The last step is also scored in fp32.
void evaluate_step(Run& run, MetricsLog& metrics);

void save(Run& run, MetricsLog& metrics);

// What the lead says at a second signal: what is lost, what is left behind ("": nothing), how to go on.
void prepare_second_signal(const Run& run, const std::string& left_behind = "");

}  // namespace exfusion
