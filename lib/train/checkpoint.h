// Checkpoints: a folder with model.safetensors (always the collapsed dense model), experts.safetensors,
// optimizer.safetensors, ema.safetensors and state.json, which lists the others with sizes and checksums and
// is written last. A folder under its final name is whole: it is written aside, synced and renamed.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "train/step.h"

namespace exfusion {

// state.json. The step counters are filled in from the TrainingState when it is saved.
struct CheckpointInfo {
  std::int64_t step = 0, updates = 0, skipped = 0, skipped_in_row = 0;
  double decay_product = 1.0;
  std::int64_t epoch = 0, samples = 0;
  std::int64_t world = 1, threads = 0, micro_batch = 0;  // ranks, and threads of each
  std::string precision;
  std::string reduction = "fast";  // dist.reduction
  std::string recipe;              // the resolved recipe: a checkpoint can be read without its run
  std::string recipe_crc32;        // of that text
  std::vector<std::string> files;  // that it lists
  std::string data_checksum;
  std::string exfusion, libtorch;
  // Accuracies on the test set at this step (absent when it was not evaluated here): in the run's precision,
  // in fp32, of the average.
  std::optional<double> test_accuracy, test_accuracy_fp32, ema_accuracy;
  // The best evaluation so far and what chose it: "validation" or "test".
  std::string best_by;
  double best_accuracy = -1.0;
  std::int64_t best_step = -1;
};

std::string checkpoint_name(std::int64_t step);  // step-00001500

// The folders with such a name, newest first, whole or damaged.
std::vector<std::filesystem::path> checkpoint_folders(const std::filesystem::path& checkpoints);

// Writes checkpoints/NAME and points checkpoints/latest at it. All ranks call it, and none returns before the
// checkpoint is whole. The bytes of the tensors' files do not depend on the number of ranks. `shared`: all
// ranks see rank 0's folder; otherwise only rank 0 writes, and receives what it does not hold. Throws
// FileError on the rank that cannot write: the others learn of it by the collective that fails.
void save_checkpoint(const std::filesystem::path& checkpoints, const TrainingState& state,
                     CheckpointInfo info, bool shared = true);

// Points checkpoints/`link` (latest, best) at the checkpoint of that step, if there is one.
void link_checkpoint(const std::filesystem::path& checkpoints, const std::string& link, std::int64_t step);

// Renames the checkpoints that are newer than that of `step`, damaged ones, to NAME.damaged: they must not
// count as the newest.
void set_aside_newer(const std::filesystem::path& checkpoints, std::int64_t step);

// Removes all but the newest `keep` checkpoints and the one that `best` points at.
void prune_checkpoints(const std::filesystem::path& checkpoints, std::int64_t keep);

// Reads state.json and checks every file it lists. Throws CheckpointError naming the file and what is wrong
// with it.
CheckpointInfo read_checkpoint(const std::filesystem::path& checkpoint);

// Restores the state, bit for bit, and returns what state.json says. Every tensor must be there with its
// shape, and nothing else. All ranks call it, of whatever number of ranks and dist.shard the checkpoint is;
// only rank 0 reads, and checks everything first. `deterministic`: the reduction of the run that goes on.
// Throws CheckpointError, FormatError; on the other ranks CheckpointError for what rank 0 finds.
CheckpointInfo load_checkpoint(const std::filesystem::path& checkpoint, TrainingState& state,
                               bool deterministic = false);

// The newest checkpoint that read_checkpoint accepts; damaged newer ones are named in warnings. nullopt if
// there is none at all; throws CheckpointError if there are some and all are damaged.
std::optional<std::filesystem::path> newest_checkpoint(const std::filesystem::path& checkpoints);

}  // namespace exfusion
