// Checkpoints read whole, experts among them, to be looked at and not trained on.
#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "train/training_state.h"

namespace exfusion {

// The checkpoints that a path names, oldest first: all whole ones of a run's folder, or the one. Throws
// CheckpointError when it is neither, or a run without any.
std::vector<std::filesystem::path> checkpoints_at(const std::filesystem::path& path);

// A checkpoint on the CPU, in fp32.
struct ReadCheckpoint {
  RunConfig config;
  TrainingState state;
};
// `data_sets` ("root=DIR") override keys of its recipe's data section. Throws CheckpointError, FormatError,
// RecipeError.
ReadCheckpoint read_with_experts(const std::filesystem::path& checkpoint,
                                 const std::vector<std::string>& data_sets);

}  // namespace exfusion
