// What bench_step and bench_dist train: models, arms ("dense", or WEIGHTS:N as "learned:4") and a batch.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "data/loader.h"
#include "dist/process_group.h"
#include "train/run_config.h"

namespace exfusion {

struct BenchModel {
  const char *name, *recipe;
  std::int64_t batch;  // unless the command line says otherwise
  std::vector<std::string> sets;
};
// vit_s, vit_ti or quickstart; throws UsageError.
const BenchModel& bench_model(const std::string& name);

// What peers.py gives PyTorch as well: one micro-batch, clipping, no drop path; and images that need no file.
// `sets` come last. Throws UsageError, RecipeError.
RunConfig arm_config(const BenchModel& model, std::int64_t batch, const std::string& precision,
                     const std::string& arm, const std::vector<std::string>& sets);

// "learned:4" as rows have it: "learned_n4".
std::string row_name(std::string arm);

// This rank's rows of the first global batch.
Batch first_batch(const RunConfig& config, const ProcessGroup& group = {});

}  // namespace exfusion
