#include "train/export.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "core/error.h"
#include "core/log.h"
#include "core/random.h"
#include "fusion/collapsed_static.h"
#include "io/files.h"
#include "io/safetensors.h"
#include "models/timm_export.h"
#include "nn/ffn.h"
#include "train/checkpoint.h"
#include "train/versions.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;

// Images for the comparison of logits: normal numbers, the same every time.
at::Tensor probe_images(const ViTConfig& vit) {
  constexpr std::int64_t kImages = 8;
  const at::Tensor images = at::empty({kImages, vit.channels, vit.image, vit.image}, at::kFloat);
  CounterRandom random(0, Draw::synthetic);
  float* pixel = images.mutable_data_ptr<float>();
  for (std::int64_t i = 0; i < images.numel(); ++i) pixel[i] = static_cast<float>(random.normal());
  return images;
}

std::string training_text(const RunConfig& run) {
  const FfnConfig& ffn = run.model.vit.ffn;
  if (ffn.name != "dense") return fmt::format("{}, {} experts per FFN", ffn.name, ffn.experts);
  if (!run.fusion) return "dense";
  return fmt::format("{} experts per FFN, weights {}", run.fusion->experts, run.fusion->weights);
}

std::string model_card(const LoadedModel& source, const ViTConfig& vit) {
  const bool dense = vit.ffn.name == "dense";
  std::string card = fmt::format(
      "# {}\n\n"
      "A vision transformer of {} blocks, width {}, {} heads, patch {}, for {}x{} images of {} channel(s) "
      "and {} classes.\n"
      "{}\n\n"
      "    {}\n\n"
      "| | |\n|---|---|\n",
      source.run ? source.run->name : "model", vit.depth, vit.dim, vit.heads, vit.patch, vit.image, vit.image,
      vit.channels, vit.classes,
      dense
          ? "A plain dense model: experts used in training, if any, are fused into these weights."
          : fmt::format("Its FFNs hold {} experts each ({}), which cannot be collapsed into dense ones: timm "
                        "cannot load it.",
                        vit.ffn.experts, vit.ffn.name),
      dense ? "model = timm.create_model(\"local-dir:<this folder>\", pretrained=True)"
            : "exfusion-eval <this folder> --data <data set>");
  const auto row = [&](const char* name, const std::string& value) {
    card += fmt::format("| {} | {} |\n", name, value);
  };
  row("made by", version_text());
  if (source.run) {
    row("data", source.run->data.name);
    row("training", training_text(*source.run));
    row("step", fmt::format("{} ({})", source.step, source.what));
    row("recipe crc32", source.recipe_crc32);
  }
  row("test accuracy",
      source.test_accuracy ? fmt::format("{:.4f}", *source.test_accuracy) : "not measured at this step");
  return card;
}

void check_target(const fs::path& folder, bool overwrite) {
  if (fs::exists(folder) && !overwrite)
    throw RunFolderError(
        fmt::format("{}: exists; choose another folder or give --overwrite", folder.string()));
  if (fs::exists(folder) && !fs::is_empty(folder) && !fs::exists(folder / "config.json"))
    throw RunFolderError(fmt::format(
        "{}: not an exported model (no config.json), so --overwrite leaves it alone", folder.string()));
}

// Writes `model`, built from `vit`, and compares it, read back, with the source.
void write_checked(const LoadedModel& source, const Model& model, const ViTConfig& vit,
                   const fs::path& folder, bool overwrite, const NamedTensors& experts = {}) {
  const at::NoGradGuard no_grad;
  check_target(folder, overwrite);
  std::error_code failed;
  if (folder.has_parent_path()) fs::create_directories(folder.parent_path(), failed);

  PendingFolder pending(folder);
  write_safetensors((pending.path() / "model.safetensors").string(), model_tensors(model),
                    {{"format", "pt"}});
  write_file(pending.path() / "config.json", timm_config_json(vit, source.mean, source.std));
  write_file(pending.path() / "README.md", model_card(source, vit));

  const LoadedModel again = load_model(pending.path(), "last");
  const at::Tensor images = probe_images(vit);
  const at::Tensor expected = source.model->forward(images, {}), found = again.model->forward(images, {});
  if (!at::equal(expected, found))
    throw VerificationError(
        fmt::format("{}: the exported model's logits differ by up to {:.3g} from the trained model's",
                    folder.string(), (expected - found).abs().max().item<double>()));
  if (!experts.empty())
    write_safetensors((pending.path() / "experts.safetensors").string(), experts, {{"format", "pt"}});
  pending.commit();
}

// Of the recipe's static experts at the step of the source's checkpoint.
NamedTensors static_experts(const LoadedModel& source) {
  const FusionConfig& fusion = *source.run->fusion;
  const double decay_product = read_checkpoint(source.origin).decay_product;
  NamedTensors tensors;
  for (const NamedFfn& ffn : select_ffns(*source.model, fusion.layers)) {
    const FfnTensors experts =
        recovered_experts(fusion, ffn.ffn->parameters_in_order(), source.run->seed, ffn.index, decay_product);
    for (std::size_t t = 0; t < kFfnTensors.size(); ++t)
      tensors.emplace_back(ffn.name + "." + kFfnTensors[t], experts[t]);
    tensors.emplace_back(ffn.name + ".a",
                         at::full({fusion.experts}, 1.0f / static_cast<float>(fusion.experts)));
  }
  return tensors;
}

}  // namespace

void export_timm(const LoadedModel& source, const fs::path& folder, bool overwrite) {
  const std::shared_ptr<Model> dense = dense_model(source.model, source.config);
  if (!dense)
    throw CheckpointError(fmt::format(
        "{}: no dense model equals its {} FFNs, so timm has no form for it; export it with --to moe",
        source.origin.string(), source.config.vit.ffn.name));
  write_checked(source, *dense, dense_config(source.config).vit, folder, overwrite);
}

void export_moe(const LoadedModel& source, const fs::path& folder, bool overwrite) {
  if (dense_model(source.model, source.config))
    throw CheckpointError(fmt::format(
        "{}: has a dense form, which needs no experts; export it with --to timm", source.origin.string()));
  write_checked(source, *source.model, source.config.vit, folder, overwrite);
}

void export_experts(const LoadedModel& source, const fs::path& folder, bool overwrite) {
  const bool collapsed = source.run && source.run->fusion && !source.run->fusion->materialize;
  if (collapsed && source.what != "last" && source.what != "best")
    throw CheckpointError(
        fmt::format("{} ({}): experts are recovered from the last or the best checkpoint, not "
                    "from an average of weights",
                    source.origin.string(), source.what));
  if (!collapsed)
    throw CheckpointError(fmt::format(
        "{} ({}): experts are recovered from a run or checkpoint with fusion.materialize: false; other "
        "training keeps its experts in the checkpoints' experts.safetensors",
        source.origin.string(), source.what));
  write_checked(source, *source.model, source.config.vit, folder, overwrite, static_experts(source));
}

void export_model(const LoadedModel& source, const fs::path& folder, bool overwrite) {
  if (const std::shared_ptr<Model> dense = dense_model(source.model, source.config)) {
    write_checked(source, *dense, dense_config(source.config).vit, folder, overwrite);
    log_info("exported to {} for timm", folder.string());
  } else {
    write_checked(source, *source.model, source.config.vit, folder, overwrite);
    log_info("exported to {} with its experts: {} FFNs cannot be collapsed, and timm cannot load them",
             folder.string(), source.config.vit.ffn.name);
  }
}

}  // namespace exfusion
