#include "models/timm_export.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

namespace exfusion {
namespace {

// timm takes int(dim * mlp_ratio), which may fall one short of hidden where hidden / dim is rounded down.
double timm_mlp_ratio(const ViTConfig& config) {
  const auto dim = static_cast<double>(config.dim), hidden = static_cast<double>(config.hidden);
  const double ratio = hidden / dim;
  return dim * ratio < hidden ? std::nextafter(ratio, std::numeric_limits<double>::infinity()) : ratio;
}

// What the forward pass and the file's tensors depend on; keys as in a recipe.
nlohmann::ordered_json ffn_json(const FfnConfig& ffn) {
  nlohmann::ordered_json json = {{"name", ffn.name}, {"experts", ffn.experts}, {"layers", ffn.layers}};
  if (ffn.name != "topk") return json;
  json["top_k"] = ffn.top_k;
  if (ffn.top_k > 1) json["renormalize"] = ffn.renormalize;
  json["bias_balance"] = ffn.bias_balance;
  return json;
}

}  // namespace

std::string timm_config_json(const ViTConfig& config, const std::vector<double>& mean,
                             const std::vector<double>& std) {
  using Json = nlohmann::ordered_json;
  const bool token = config.pool == "token";
  const Json arguments = {
      {"img_size", config.image},    {"patch_size", config.patch},
      {"in_chans", config.channels}, {"num_classes", config.classes},
      {"embed_dim", config.dim},     {"depth", config.depth},
      {"num_heads", config.heads},   {"mlp_ratio", timm_mlp_ratio(config)},
      {"global_pool", config.pool},  {"class_token", token},
  };
  Json pretrained = {
      {"input_size", {config.channels, config.image, config.image}},
      {"fixed_input_size", true},
      {"num_classes", config.classes},
      {"interpolation", "bicubic"},
      {"crop_pct", 1.0},
      {"mean", mean},
      {"std", std},
      {"classifier", "head"},
  };
  // timm adapts the first convolution when a caller asks for other channels, which it can only from three.
  pretrained["first_conv"] = config.channels == 3 ? Json("patch_embed.proj") : Json(nullptr);
  // The arguments override everything in which this architecture differs from ours: it stands for "a plain
  // ViT".
  const bool dense = config.ffn.name == "dense";
  Json document = {
      {"architecture", dense ? "vit_base_patch16_224" : "exfusion_vit"},
      {"num_classes", config.classes},
      {"num_features", config.dim},
      {"global_pool", config.pool},
      {"model_args", arguments},
      {"pretrained_cfg", pretrained},
  };
  if (!dense) document["exfusion"] = {{"ffn", ffn_json(config.ffn)}};
  return document.dump(2) + "\n";
}

}  // namespace exfusion
