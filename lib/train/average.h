// Averages of a run's checkpoints ("model soups", Wortsman et al. 2022): one dense model, no training.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

#include "train/model_source.h"

namespace exfusion {

struct SoupMember {
  std::int64_t step = 0;
  std::optional<double> validation_accuracy;  // of this checkpoint alone; greedy only
  bool kept = true;
};

struct Soup {
  LoadedModel model;                          // what: "average of …"
  std::vector<SoupMember> members;            // in the order in which they were tried: uniform: oldest first
  std::optional<double> validation_accuracy;  // of the average; greedy only
};

// The mean of the model.safetensors of a run's last `count` valid checkpoints, summed in double precision and
// rounded once; a count of 1 is the last checkpoint bit for bit. `greedy`: from the most accurate checkpoint
// on the held-out images (data.validation) downwards, one is added while the accuracy of the mean on them
// does not fall. Throws CheckpointError when there are fewer checkpoints, nothing is held out or the data
// have changed.
Soup average_checkpoints(const std::filesystem::path& run, std::int64_t count, bool greedy);

}  // namespace exfusion
