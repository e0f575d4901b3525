// vit_probe MODEL_YAML IN.safetensors OUT.safetensors [bf16]
//
// Runs our ViT once, forward and backward. MODEL_YAML is a recipe with a `model` section. IN holds timm's
// weights (names behind "model."), images, labels (int64) and maybe drop_path (the factors). OUT gets logits,
// loss (mean cross entropy), grad.NAME and initial.NAME (the value drawn from seed 1) of every parameter; its
// metadata has the parameters' order and the text of timm's config.json.
#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>

#include <cstring>
#include <iostream>

#include "core/recipe.h"
#include "io/safetensors.h"
#include "models/model.h"
#include "models/timm_export.h"

namespace {

void probe(const std::string& recipe_path, const std::string& in_path, const std::string& out_path,
           bool bf16) {
  using namespace exfusion;
  auto recipe = Recipe::load(recipe_path, {});
  const auto config = ModelConfig::parse(recipe.root().child("model"));
  recipe.finish();
  const auto model = make_model(config, 1);
  const SafetensorsFile in(in_path);

  NamedTensors out;
  std::string order;
  {
    const at::NoGradGuard no_grad;
    for (const auto& item : model->named_parameters()) {
      order += item.key() + "\n";
      out.emplace_back("initial." + item.key(), item.value().clone());
      in.read_into("model." + item.key(), item.value());
    }
  }
  const auto drop_path = in.contains("drop_path") ? in.read("drop_path") : at::Tensor();
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  at::autocast::set_autocast_enabled(at::kCPU, bf16);
  const auto logits = model->forward(in.read("images"), drop_path).to(at::kFloat);
  at::autocast::set_autocast_enabled(at::kCPU, false);
  at::autocast::clear_cache();
  const auto loss = at::cross_entropy_loss(logits, in.read("labels"));
  loss.backward();

  out.emplace_back("logits", logits.detach());
  out.emplace_back("loss", loss.detach());
  for (const auto& item : model->named_parameters())
    out.emplace_back("grad." + item.key(), item.value().grad());
  const auto channels = static_cast<std::size_t>(config.vit.channels);
  const std::vector<double> mean(channels, 0.25), std(channels, 0.5);
  write_safetensors(out_path, out,
                    {{"parameters", order}, {"config.json", timm_config_json(config.vit, mean, std)}});
}

}  // namespace

int main(int argc, char** argv) {
  const bool bf16 = argc == 5 && std::strcmp(argv[4], "bf16") == 0;
  if (argc != 4 && !bf16) {
    std::cerr << "usage: vit_probe MODEL_YAML IN.safetensors OUT.safetensors [bf16]\n";
    return 2;
  }
  try {
    probe(argv[1], argv[2], argv[3], bf16);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
