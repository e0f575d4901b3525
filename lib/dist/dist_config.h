// The recipe's `dist` section: how the ranks of a run work together.
#pragma once
#include <chrono>
#include <cstdint>
#include <string>

namespace exfusion {

class Section;

struct DistConfig {
  std::string backend = "auto";    // auto (by train.device), gloo, nccl
  std::string reduction = "fast";  // fast; deterministic: the same bits for any number of ranks
  std::int64_t leaf_batch = 0;     // samples of a leaf; 0 unless reduction is deterministic
  std::string shard = "none";      // none, experts (with their moments), all (the dense optimizer state too)
  std::int64_t threads = 0;        // of each rank; 0: OMP_NUM_THREADS, else the cores over the local ranks
  std::chrono::milliseconds timeout = std::chrono::minutes(10);  // silence inside a collective

  static DistConfig parse(Section section, std::int64_t global_batch);
  bool deterministic() const { return reduction == "deterministic"; }
};

}  // namespace exfusion
