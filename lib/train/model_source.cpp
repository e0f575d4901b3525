#include "train/model_source.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "core/error.h"
#include "core/recipe.h"
#include "io/exact_tensors.h"
#include "io/files.h"
#include "io/safetensors.h"
#include "models/timm_import.h"
#include "train/checkpoint.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;

// Before memory is taken for a model that config.json merely claims.
void check_size(const fs::path& file, const ViTConfig& vit) {
  const SafetensorsFile weights(file.string());
  double values = 0.0;
  for (const auto& [name, info] : weights.tensors())
    values += static_cast<double>(info.end - info.begin) / sizeof(float);
  if (values != vit.parameter_count())
    throw FormatError(fmt::format("{}: holds {:.0f} numbers, the model that config.json describes has {:.0f}",
                                  file.string(), values, vit.parameter_count()));
}

LoadedModel from_export(const fs::path& path) {
  LoadedModel loaded;
  const TimmConfig timm =
      parse_timm_config(read_file(path / "config.json", 1u << 20), (path / "config.json").string());
  loaded.config = ModelConfig{.arch = "vit", .vit = timm.vit};
  loaded.mean = timm.mean;
  loaded.std = timm.std;
  check_size(path / "model.safetensors", loaded.config.vit);
  loaded.model = make_model(loaded.config, 0);
  loaded.model->eval();
  load_weights(path / "model.safetensors", *loaded.model);
  loaded.what = "last";
  loaded.origin = path;
  return loaded;
}

// A recipe may give one value for all channels.
std::vector<double> per_channel(const std::vector<double>& values, const ViTConfig& vit) {
  return values.size() == 1 ? std::vector<double>(static_cast<std::size_t>(vit.channels), values.front())
                            : values;
}

LoadedModel model_from_checkpoint(const fs::path& path, const std::string& what) {
  const CheckpointInfo info = read_checkpoint(path);
  Recipe recipe = Recipe::parse(info.recipe, (path / "state.json").string() + " (recipe)");
  LoadedModel loaded;
  loaded.run = parse_run(recipe);
  loaded.config = loaded.run->model;
  loaded.mean = per_channel(loaded.run->data.mean, loaded.config.vit);
  loaded.std = per_channel(loaded.run->data.std, loaded.config.vit);
  loaded.recipe_crc32 = info.recipe_crc32;
  loaded.step = info.step;
  loaded.what = what;
  loaded.origin = path;
  loaded.model = make_model(loaded.config, 0);
  loaded.model->eval();
  if (what == "ema" && !fs::exists(path / "ema.safetensors"))
    throw CheckpointError(fmt::format("{}: holds no weight average (train.ema was off)", path.string()));
  load_weights(path / (what == "ema" ? "ema.safetensors" : "model.safetensors"), *loaded.model);
  if (what == "ema") {
    loaded.test_accuracy = info.ema_accuracy;
  } else {
    loaded.test_accuracy = info.test_accuracy_fp32 ? info.test_accuracy_fp32 : info.test_accuracy;
  }
  return loaded;
}

}  // namespace

void load_weights(const fs::path& file, Model& model) {
  const at::NoGradGuard no_grad;
  read_exactly(file.string(), model_tensors(model));
  for (const auto& [name, tensor] : model_tensors(model)) {
    if (!tensor.isfinite().all().item<bool>())
      throw FormatError(fmt::format("{}: {} holds values that are not finite", file.string(), name));
  }
}

LoadedModel load_model(const fs::path& path, const std::string& what) {
  if (!fs::is_directory(path))
    throw CheckpointError(
        fmt::format("{}: no such folder; give a run, a checkpoint or an exported model", path.string()));
  if (fs::is_directory(path / "checkpoints")) {
    const fs::path checkpoints = path / "checkpoints";
    if (what != "best") {
      const auto newest = newest_checkpoint(checkpoints);
      if (!newest) throw CheckpointError(fmt::format("{}: has no checkpoint yet", path.string()));
      return model_from_checkpoint(*newest, what);
    }
    std::error_code none;
    const fs::path best = fs::read_symlink(checkpoints / "best", none);
    if (best.empty())
      throw CheckpointError(fmt::format("{}: no checkpoint is marked best", checkpoints.string()));
    return model_from_checkpoint(checkpoints / best, what);
  }
  if (what == "best")
    throw CheckpointError(
        fmt::format("{}: one checkpoint, so there is no best; give the run's folder", path.string()));
  if (fs::is_regular_file(path / "state.json")) return model_from_checkpoint(path, what);
  if (!fs::is_regular_file(path / "config.json"))
    throw CheckpointError(fmt::format(
        "{}: neither a run (checkpoints/), a checkpoint (state.json) nor an exported model (config.json)",
        path.string()));
  if (what != "last")
    throw CheckpointError(fmt::format("{}: an exported model has no '{}'", path.string(), what));
  return from_export(path);
}

}  // namespace exfusion
