#include "models/timm_import.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/recipe.h"
#include "io/json_text.h"

namespace exfusion {
namespace {

using nlohmann::json;

template <class T>
T field(const json& object, const char* key, const std::string& where) {
  try {
    return object.at(key).get<T>();
  } catch (const json::exception&) {
    throw FormatError(fmt::format("{}: field '{}' is missing or of the wrong type", where, key));
  }
}

// The `model.ffn` section of a model whose FFNs are not dense: JSON's objects are YAML's.
std::string ffn_section(const json& document, const std::string& name) {
  if (!document.contains("exfusion")) return "none";
  const json ffn = field<json>(field<json>(document, "exfusion", name), "ffn", name + ": exfusion");
  if (!ffn.is_object()) throw FormatError(fmt::format("{}: exfusion.ffn is not an object", name));
  return ffn.dump();
}

}  // namespace

TimmConfig parse_timm_config(const std::string& text, const std::string& name) {
  const json document = parse_json_object(text, name);
  const json arguments = field<json>(document, "model_args", name),
             pretrained = field<json>(document, "pretrained_cfg", name);
  const std::string where = name + ": model_args";
  // The recipe's own reader checks ranges and combinations: one place for what a ViT may be.
  std::string model = fmt::format(
      "model: {{arch: vit, dim: {}, depth: {}, heads: {}, mlp_ratio: {}, patch: {}, image: {}, channels: {}, "
      "classes: {}, pool: {}, ffn: {}}}",
      field<std::int64_t>(arguments, "embed_dim", where), field<std::int64_t>(arguments, "depth", where),
      field<std::int64_t>(arguments, "num_heads", where), field<double>(arguments, "mlp_ratio", where),
      field<std::int64_t>(arguments, "patch_size", where), field<std::int64_t>(arguments, "img_size", where),
      field<std::int64_t>(arguments, "in_chans", where), field<std::int64_t>(arguments, "num_classes", where),
      json(field<std::string>(arguments, "global_pool", where)).dump(), ffn_section(document, name));
  TimmConfig config;
  try {
    Recipe recipe = Recipe::parse(model, name);
    Section section = recipe.root().child("model");
    section.require<std::string>("arch");
    config.vit = ViTConfig::parse(section);
    recipe.finish();
  } catch (const RecipeError& error) {
    const std::string problems = error.what();
    throw FormatError(fmt::format("{}: not a vision transformer of ours: {}", name,
                                  problems.substr(0, problems.find('\n'))));
  }
  config.mean = field<std::vector<double>>(pretrained, "mean", name + ": pretrained_cfg");
  config.std = field<std::vector<double>>(pretrained, "std", name + ": pretrained_cfg");
  for (const auto* values : {&config.mean, &config.std}) {
    if (values->size() != static_cast<std::size_t>(config.vit.channels))
      throw FormatError(fmt::format("{}: {} values of mean or std for {} channels", name, values->size(),
                                    config.vit.channels));
  }
  return config;
}

}  // namespace exfusion
