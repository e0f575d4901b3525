// A whole run, parsed: after this nobody sees YAML.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "data/dataset.h"
#include "dist/dist_config.h"
#include "fusion/fusion_config.h"
#include "models/model.h"
#include "observe/analysis_config.h"
#include "optim/adamw.h"
#include "train/control.h"

namespace exfusion {

class Recipe;

struct TrainConfig {
  double epochs = 20.0;             // length in epochs; a part of an epoch is allowed
  std::int64_t steps = 0;           // length in steps; wins over epochs when given
  std::int64_t global_batch = 256;  // samples per optimizer step
  std::int64_t micro_batch =
      0;                   // samples per forward pass; the gradients of a step's micro-batches are summed
  bool recompute = false;  // the backward pass computes a block's activations once more: less memory
  std::string precision = "fp32";     // fp32, bf16 (autocast; parameters, gradients and moments stay fp32)
  std::string device = "cpu";         // cpu, cuda (train/device.h); an export or an evaluation is the CPU's
  double clip = 1.0;                  // bound on the global gradient norm; 0: off
  double ema = 0.0;                   // decay of the weight average; 0: off
  std::int64_t eval_every_steps = 0;  // 0: once per epoch
  std::int64_t log_every_steps = 1;   // cadence of the rows in metrics.h5
  std::int64_t threads = 0;           // of the computation; 0: what OMP_NUM_THREADS or the machine says
  std::int64_t max_skipped = 10;  // steps in a row with a non-finite loss or gradient before the run stops
};

struct CheckpointConfig {
  std::int64_t every_steps = 0;   // 0: not by steps
  std::int64_t every_epochs = 1;  // 0: not by epochs; the last step is always saved
  std::int64_t keep = 3;          // newest checkpoints kept; the best one is kept besides
};

struct RunConfig {
  std::string name;
  std::uint64_t seed = 0;
  ModelConfig model;
  std::optional<FusionConfig> fusion;  // absent: dense training
  ControlConfig control;
  std::string init_from;               // a dense model whose weights the run starts from; "": fresh ones
  std::vector<std::string> init_skip;  // tensors, or prefixes ending in '.', that may differ from that model
  DataConfig data;
  TrainConfig train;
  AdamWConfig optim;
  CheckpointConfig checkpoint;
  AnalysisConfig analysis;
  DistConfig dist;
};

// Reads every section and checks across them. Throws RecipeError with all problems of the recipe.
RunConfig parse_run(Recipe& recipe);

// Whether `--resume` may change this key: the length of training, cadences, output, threads, and all
// of `dist`.
bool may_change_on_resume(const std::string& key);

// The first line of the resolved recipe `now` that differs from `before` in a key that may not change; "" if
// there is none. `before` is resolved once more: keys that are younger than it have their defaults. Throws
// RecipeError if that fails.
std::string changed_line(const std::string& before, const std::string& now);

// The same answer to both: a step number is the count of finished steps.
std::int64_t total_steps(const TrainConfig& config, std::int64_t steps_per_epoch);

}  // namespace exfusion
