#include "inspect/checkpoint_reader.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.h"
#include "core/log.h"
#include "core/recipe.h"
#include "train/checkpoint.h"
#include "train/memory.h"

namespace exfusion {

namespace fs = std::filesystem;

std::vector<fs::path> checkpoints_at(const fs::path& path) {
  if (fs::is_regular_file(path / "state.json")) return {path};
  if (!fs::is_directory(path / "checkpoints"))
    throw CheckpointError(
        fmt::format("{}: neither a run (checkpoints/), a checkpoint (state.json) nor a file", path.string()));
  std::vector<fs::path> folders = checkpoint_folders(path / "checkpoints");
  std::ranges::reverse(folders);
  std::vector<fs::path> whole;
  for (const fs::path& folder : folders) {
    try {
      read_checkpoint(folder);
      whole.push_back(folder);
    } catch (const BadInput& error) {
      log_warning("checkpoint not used: {}", error.what());
    }
  }
  if (whole.empty())
    throw CheckpointError(
        fmt::format("{}: has no {}checkpoint", path.string(), folders.empty() ? "" : "undamaged "));
  return whole;
}

ReadCheckpoint read_with_experts(const fs::path& checkpoint, const std::vector<std::string>& data_sets) {
  std::vector<std::string> sets;
  for (const std::string& set : data_sets) sets.push_back("data." + set);
  Recipe recipe = Recipe::parse(read_checkpoint(checkpoint).recipe,
                                (checkpoint / "state.json").string() + " (recipe)", sets);
  ReadCheckpoint read{parse_run(recipe), {}};
  read.config.train.device = "cpu";
  read.config.train.precision = "fp32";
  check_memory(read.config);
  read.state = make_training_state(read.config, /*load_source=*/false);
  load_checkpoint(checkpoint, read.state, read.config.dist.deterministic());
  read.state.model->eval();
  return read;
}

}  // namespace exfusion
