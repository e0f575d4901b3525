#include "prune/hf_model.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "core/error.h"
#include "io/files.h"
#include "io/json_text.h"
#include "io/safetensors_format.h"
#include "io/safetensors_layout.h"
#include "prune/weight_scores.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::uint64_t kLargestConfig = 16u << 20, kLargestIndex = 256u << 20;
constexpr std::int64_t kMostExperts = 65536;

std::int64_t count_of(const json& config, const char* key, const std::string& file) {
  const json value = config.value(key, json());
  if (!value.is_number_integer() || value < 1 || value > kMostExperts)
    throw FormatError(fmt::format("{}: {} must be a whole number of 1 to {}", file, key, kMostExperts));
  return value.get<std::int64_t>();
}

void read_config(HfModel& model) {
  const fs::path path = model.folder / "config.json";
  const std::string file = path.string();
  model.config = read_file(path, kLargestConfig);
  const json config = parse_json_object(model.config, file);
  const json type = config.value("model_type", json());
  model.layout = &hf_layout(type.is_string() ? type.get<std::string>() : "", file);
  model.top_k = count_of(config, "num_experts_per_tok", file);
  for (const char* key : kExpertKeys) {
    if (!config.contains(key)) continue;
    const std::int64_t experts = count_of(config, key, file);
    if (model.experts != 0 && experts != model.experts)
      throw FormatError(fmt::format("{}: {} is {}, and {} above", file, key, experts, model.experts));
    model.experts = experts;
  }
  if (model.experts < model.top_k)
    throw FormatError(fmt::format("{}: {} must be at least num_experts_per_tok, {}", file,
                                  fmt::join(kExpertKeys, " or "), model.top_k));
}

// The map of the index `file`: tensor to file.
std::map<std::string, std::string> weight_map(const std::string& index, const std::string& file) {
  const json document = parse_json_object(index, file);
  std::map<std::string, std::string> map;
  try {
    map = document.at("weight_map").get<std::map<std::string, std::string>>();
  } catch (const json::exception&) {
    throw FormatError(file + ": weight_map must be an object of tensors' names and their files");
  }
  for (const auto& [tensor, name] : map) {
    // It becomes part of a path that is written.
    if (name.find('/') != name.npos || name.find('\0') != name.npos || name.starts_with('.') ||
        !name.ends_with(".safetensors"))
      throw FormatError(fmt::format("{}: weight_map: {} is no name of a .safetensors file in this folder",
                                    file, quoted_name(name)));
    if (!fs::is_regular_file(fs::path(file).parent_path() / name))
      throw FormatError(
          fmt::format("{}: weight_map: {}: no such file in this folder", file, quoted_name(name)));
  }
  return map;
}

void read_shards(HfModel& model, const fs::path& path) {
  model.index = read_file(path, kLargestIndex);
  const std::map<std::string, std::string> map = weight_map(model.index, path.string());
  std::set<std::string> names;
  for (const auto& [tensor, name] : map) names.insert(name);
  std::size_t found = 0;
  for (const std::string& name : names) {
    const SafetensorsFile& file = model.files.emplace_back((model.folder / name).string());
    for (const auto& [tensor, info] : file.tensors()) {
      const auto place = map.find(tensor);
      if (place == map.end() || place->second != name)
        throw FormatError(fmt::format("{}: holds tensor {}, for which weight_map does not name this file",
                                      file.path(), quoted_name(tensor)));
      ++found;
    }
  }
  for (const auto& [tensor, name] : map) {
    if (found == map.size()) break;
    const auto holds = [&](const SafetensorsFile& file) { return file.contains(tensor); };
    if (std::ranges::none_of(model.files, holds))
      throw FormatError(
          fmt::format("{}: tensor {} is missing", (model.folder / name).string(), quoted_name(tensor)));
  }
}

// What of a layer's experts is there.
struct FoundLayer {
  bool router = false;
  std::int64_t tensors = 0;
  std::map<std::string_view, std::vector<std::int64_t>> shapes;  // of each matrix
};

void note_tensor(const HfModel& model, const SafetensorsFile& file, const std::string& name,
                 std::map<std::int64_t, FoundLayer>& layers) {
  const std::optional<ExpertTensor> tensor = expert_tensor(*model.layout, name, file.path());
  if (!tensor) return;
  const std::vector<std::int64_t>& shape = file.tensors().at(name).shape;
  const auto refuse = [&](const std::string& right) {
    throw FormatError(fmt::format("{}: tensor {} is [{}], {}", file.path(), quoted_name(name),
                                  fmt::join(shape, ", "), right));
  };
  const std::string& type = file.tensors().at(name).dtype;
  const std::optional<at::ScalarType> known = scalar_type(type);
  if (!known || !at::isFloatingType(*known))
    refuse(fmt::format("of type {}, expected floating point (quantized experts are not supported)", type));
  FoundLayer& layer = layers[tensor->layer];
  if (tensor->expert < 0) {
    layer.router = true;
    if (shape.size() != 2 || shape[0] != model.experts)
      refuse(fmt::format("expected {} rows, the experts of config.json", model.experts));
    return;
  }
  if (tensor->expert >= model.experts) refuse(fmt::format("of {} experts of config.json", model.experts));
  const auto& first = layer.shapes.try_emplace(tensor->matrix, shape).first->second;
  if (shape.size() != 2 || shape != first) refuse("expected a matrix of the same shape for all experts");
  ++layer.tensors;
}

void check_layers(HfModel& model) {
  std::map<std::int64_t, FoundLayer> layers;
  for (const SafetensorsFile& file : model.files) {
    for (const auto& [name, info] : file.tensors()) note_tensor(model, file, name, layers);
  }
  if (layers.empty())
    throw FormatError(fmt::format("{}: holds no tensors {}", model.folder.string(),
                                  expert_tensor_name(*model.layout, {.layer = 0})));
  for (const auto& [number, layer] : layers) {
    const std::int64_t expected = 3 * model.experts;
    if (!layer.router || layer.tensors != expected)
      throw FormatError(fmt::format("{}: layer {} has {} matrices of experts and {}, expected {} and one",
                                    model.folder.string(), number, layer.tensors,
                                    layer.router ? "a router" : "no router", expected));
    model.layers.push_back(number);
  }
}

}  // namespace

bool is_hf_model(const fs::path& folder) {
  std::error_code ignored;
  const fs::path config = folder / "config.json";
  if (!fs::is_regular_file(config, ignored)) return false;
  return parse_json_object(read_file(config, kLargestConfig), config.string()).contains("model_type");
}

HfModel read_hf_model(const fs::path& folder) {
  HfModel model;
  model.folder = folder;
  read_config(model);
  const fs::path single = folder / "model.safetensors", index = folder / "model.safetensors.index.json";
  if (fs::exists(single)) {  // the order in which transformers looks
    model.files.emplace_back(single.string());
  } else if (fs::exists(index)) {
    read_shards(model, index);
  } else {
    throw FormatError(
        fmt::format("{}: has neither model.safetensors nor model.safetensors.index.json", folder.string()));
  }
  check_layers(model);
  return model;
}

ScoresByLayer weight_scores(const HfModel& model, const std::string& score) {
  std::map<std::int64_t, std::vector<WeightSums>> sums;
  for (const std::int64_t layer : model.layers) sums[layer].resize(static_cast<std::size_t>(model.experts));
  for (const SafetensorsFile& file : model.files) {
    for (const auto& [name, info] : file.tensors()) {
      const std::optional<ExpertTensor> tensor = expert_tensor(*model.layout, name, file.path());
      if (!tensor || (tensor->expert < 0) != scores_router(score)) continue;
      std::vector<WeightSums>& experts = sums.at(tensor->layer);
      const at::Tensor weights = file.read(name);
      if (tensor->expert >= 0) experts[static_cast<std::size_t>(tensor->expert)].add(weights);
      for (std::size_t e = 0; e < experts.size() && tensor->expert < 0; ++e)
        experts[e].add(weights[static_cast<std::int64_t>(e)]);
    }
  }
  ScoresByLayer scores;
  for (const auto& [layer, experts] : sums) {
    for (std::size_t e = 0; e < experts.size(); ++e)
      scores[layer].push_back(weight_score(
          score, experts[e], fmt::format("{}: layer {}, expert {}", model.folder.string(), layer, e)));
  }
  return scores;
}

}  // namespace exfusion
