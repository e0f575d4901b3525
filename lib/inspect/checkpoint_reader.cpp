#include "inspect/checkpoint_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>

#include "core/error.h"
#include "core/log.h"
#include "core/recipe.h"
#include "io/files.h"
#include "io/json_text.h"
#include "train/checkpoint.h"
#include "train/memory.h"

namespace exfusion {

namespace fs = std::filesystem;

namespace {

// What a folder is that is neither a run nor a checkpoint, and what would be right.
std::string other_folder(const fs::path& path) {
  const auto holds = [&](const char* name) { return fs::is_regular_file(path / name); };
  if (holds("upcycle.json"))
    return "experts that no run has trained (exfusion-upcycle): give a run from them";
  if (holds("analysis.json")) return "an analysis: give the run or the trace that it is of";
  if (holds("plan.json")) return "a comparison: give one of the folders in its runs/";
  if (!holds("config.json")) return "neither a run (checkpoints/), a checkpoint (state.json) nor a file";
  const std::string config = (path / "config.json").string();
  if (parse_json_object(read_file(config, 1u << 24), config).contains("model_type"))
    return "a model for transformers: record a routing trace of it (experiments/hf_trace) and give that";
  return "an exported model, which has neither a recipe nor held-out data: give the run or the checkpoint "
         "that it is of";
}

}  // namespace

std::vector<fs::path> checkpoints_at(const fs::path& path) {
  if (fs::is_regular_file(path / "state.json")) return {path};
  if (!fs::is_directory(path / "checkpoints"))
    throw CheckpointError(fmt::format("{}: {}", path.string(), other_folder(path)));
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

namespace {

RunConfig parse_with(const CheckpointInfo& info, const fs::path& checkpoint,
                     const std::vector<std::string>& data_sets) {
  std::vector<std::string> sets;
  for (const std::string& set : data_sets) sets.push_back("data." + set);
  try {
    Recipe recipe = Recipe::parse(info.recipe, (checkpoint / "state.json").string() + " (recipe)", sets);
    return parse_run(recipe);
  } catch (const RecipeError& error) {  // names them as the user did
    std::string lines = error.what();
    constexpr std::string_view kSet = "--set data.", kData = "--data ";
    for (std::size_t at = lines.find(kSet); at != lines.npos; at = lines.find(kSet, at))
      lines.replace(at, kSet.size(), kData);
    throw RecipeError(lines);
  }
}

}  // namespace

ReadCheckpoint read_with_experts(const fs::path& checkpoint, const std::vector<std::string>& data_sets) {
  ReadCheckpoint read{parse_with(read_checkpoint(checkpoint), checkpoint, data_sets), {}};
  read.config.train.device = "cpu";
  read.config.train.precision = "fp32";
  check_memory(read.config);
  read.state = make_training_state(read.config, /*load_source=*/false);
  load_checkpoint(checkpoint, read.state, read.config.dist.deterministic());
  read.state.model->eval();
  return read;
}

}  // namespace exfusion
