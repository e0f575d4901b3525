#include "train/export.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "core/error.h"
#include "core/random.h"
#include "io/files.h"
#include "io/safetensors.h"
#include "models/timm_export.h"
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

std::string model_card(const LoadedModel& source) {
  const ViTConfig& vit = source.config.vit;
  std::string card = fmt::format(
      "# {}\n\n"
      "A vision transformer of {} blocks, width {}, {} heads, patch {}, for {}x{} images of {} channel(s) "
      "and {} classes.\n"
      "A plain dense model: experts used in training, if any, are fused into these weights.\n\n"
      "    model = timm.create_model(\"local-dir:<this folder>\", pretrained=True)\n\n"
      "| | |\n|---|---|\n",
      source.run ? source.run->name : "model", vit.depth, vit.dim, vit.heads, vit.patch, vit.image, vit.image,
      vit.channels, vit.classes);
  const auto row = [&](const char* name, const std::string& value) {
    card += fmt::format("| {} | {} |\n", name, value);
  };
  row("made by", version_text());
  if (source.run) {
    row("data", source.run->data.name);
    row("training", source.run->fusion ? fmt::format("{} experts per FFN, weights {}",
                                                     source.run->fusion->experts, source.run->fusion->weights)
                                       : "dense");
    row("step", fmt::format("{} ({})", source.step, source.what));
    row("recipe crc32", source.recipe_crc32);
  }
  row("test accuracy",
      source.test_accuracy ? fmt::format("{:.4f}", *source.test_accuracy) : "not measured at this step");
  return card;
}

}  // namespace

void export_timm(const LoadedModel& source, const fs::path& folder, bool overwrite) {
  const at::NoGradGuard no_grad;
  if (fs::exists(folder) && !overwrite)
    throw RunFolderError(
        fmt::format("{}: exists; choose another folder or give --overwrite", folder.string()));
  if (fs::exists(folder) && !fs::is_empty(folder) && !fs::exists(folder / "config.json"))
    throw RunFolderError(fmt::format(
        "{}: not an exported model (no config.json), so --overwrite leaves it alone", folder.string()));
  std::error_code failed;
  if (folder.has_parent_path()) fs::create_directories(folder.parent_path(), failed);

  PendingFolder pending(folder);
  NamedTensors tensors;
  for (const auto& item : source.model->named_parameters())
    tensors.emplace_back(item.key(), item.value().detach());
  write_safetensors((pending.path() / "model.safetensors").string(), tensors, {{"format", "pt"}});
  write_file(pending.path() / "config.json", timm_config_json(source.config.vit, source.mean, source.std));
  write_file(pending.path() / "README.md", model_card(source));

  const LoadedModel again = load_model(pending.path(), "last");
  const at::Tensor images = probe_images(source.config.vit);
  const at::Tensor expected = source.model->forward(images, {}), found = again.model->forward(images, {});
  if (!at::equal(expected, found))
    throw VerificationError(
        fmt::format("{}: the exported model's logits differ by up to {:.3g} from the trained model's",
                    folder.string(), (expected - found).abs().max().item<double>()));
  pending.commit();
}

}  // namespace exfusion
