// What a run's state needs in memory, known before any of it exists, and what the machine has.
#pragma once
#include <filesystem>
#include <string>

#include "train/run_config.h"

namespace exfusion {

// Bytes of fp32 state; activations come on top. With P numbers in the model, F of them in the fused FFNs:
struct StateMemory {
  double weights = 0.0;    // 4 P
  double gradients = 0.0;  // 4 P
  double moments = 0.0;    // 8 (P - F), AdamW's
  double experts = 0.0;    // 12 N F: N experts with their moments
  double rest = 0.0;       // the weight average; what upcycling keeps of its start; what decides the experts'
                           // weights (of `memory` weights, 8 N^2 dim for each FFN)
  double total() const { return weights + gradients + moments + experts + rest; }
};
// Of each of `world` ranks: dist.shard divides experts, or all moments, by them.
StateMemory state_memory(const RunConfig& config, int world = 1);

// Bytes that this process may still take: MemAvailable, or what is left of the memory limit of its control
// group (version 1 or 2) or one above, if that is less. Infinity where the system does not say. `root`: where
// /proc and /sys are.
double available_memory(const std::filesystem::path& root = "/");

// One line: the bytes of the state and its parts, and what is available, to `local_world` ranks on this
// machine.
std::string memory_text(const RunConfig& config, int world = 1, int local_world = 1);

// Throws RecipeError with advice if the state of the `local_world` ranks on this machine needs more than is
// available.
void check_memory(const RunConfig& config, int world = 1, int local_world = 1);

}  // namespace exfusion
