#include "prune/hf_prune.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/error.h"
#include "core/log.h"
#include "io/files.h"
#include "io/json_text.h"
#include "io/open_files.h"
#include "io/safetensors_format.h"
#include "io/safetensors_layout.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// What becomes of a tensor.
struct Remainder {
  std::string name;                                 // its new one
  const std::vector<std::int64_t>* rows = nullptr;  // those that remain; null: all
};

std::optional<Remainder> remainder(const HfModel& model, const KeptExperts& kept, const std::string& name,
                                   const std::string& file) {
  std::optional<ExpertTensor> tensor = expert_tensor(*model.layout, name, file);
  if (!tensor) return Remainder{name};
  const std::vector<std::int64_t>& experts = kept.at(tensor->layer);
  if (tensor->expert < 0) return Remainder{name, &experts};
  const auto found = std::ranges::find(experts, tensor->expert);
  if (found == experts.end()) return std::nullopt;
  tensor->expert = found - experts.begin();
  return Remainder{expert_tensor_name(*model.layout, *tensor)};
}

// Shape and type alone: a tensor of the meta device takes no memory.
at::Tensor described(const TensorInfo& info, const Remainder& rest, const std::string& file) {
  const std::optional<at::ScalarType> type = scalar_type(info.dtype);
  if (!type)
    throw FormatError(fmt::format("{}: tensor {}: weights of type {} are not supported", file,
                                  quoted_name(rest.name), info.dtype));
  std::vector<std::int64_t> shape = info.shape;
  if (rest.rows) shape.front() = static_cast<std::int64_t>(rest.rows->size());
  return at::empty(shape, at::TensorOptions(*type).device(at::kMeta));
}

struct Written {
  json weight_map = json::object();  // tensor: file
  std::uint64_t bytes = 0, numbers = 0;
};

void write_file_of(const HfModel& model, const KeptExperts& kept, const SafetensorsFile& source,
                   const fs::path& folder, Written& written) {
  const fs::path path = folder / fs::path(source.path()).filename();
  std::vector<std::pair<std::string, Remainder>> tensors;  // by the name in the source
  TensorParts parts;
  for (const auto& [name, info] : source.tensors()) {
    std::optional<Remainder> rest = remainder(model, kept, name, source.path());
    if (!rest) continue;
    parts.push_back({.name = rest->name, .values = described(info, *rest, source.path())});
    written.weight_map[rest->name] = path.filename().string();
    written.numbers += static_cast<std::uint64_t>(parts.back().values.numel());
    tensors.emplace_back(name, std::move(*rest));
  }
  if (tensors.empty()) return;  // a shard of pruned experts alone
  const SafetensorsLayout layout = safetensors_layout(path.string(), parts, source.metadata());
  written.bytes += layout.size - layout.head.size();
  OutputFile file(path.string());
  file.write(layout.head);
  for (const auto& [name, rest] : tensors) {
    at::Tensor values = source.read(name);
    if (rest.rows) values = values.index_select(0, at::tensor(*rest.rows, at::kLong));
    for_each_range(layout, {.name = rest.name, .values = values},
                   [&](std::uint64_t place, std::span<const std::byte> bytes) {
                     file.write_at(place, bytes.data(), bytes.size());
                   });
  }
}

std::string pruned_config(const HfModel& model, std::int64_t experts) {
  json config = parse_json_object(model.config, "config.json");
  for (const char* key : kExpertKeys) {
    if (config.contains(key)) config[key] = experts;
  }
  return config.dump(2) + "\n";
}

std::string pruned_index(const HfModel& model, Written written) {
  json index = parse_json_object(model.index, "model.safetensors.index.json");
  index["weight_map"] = std::move(written.weight_map);
  json& metadata = index["metadata"];
  if (!metadata.is_object()) metadata = json::object();
  metadata["total_size"] = written.bytes;
  if (metadata.contains("total_parameters")) metadata["total_parameters"] = written.numbers;
  return index.dump(2) + "\n";
}

constexpr std::string_view kOtherWeights[] = {".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx"};

// Tokenizer, generation config, licence: whatever does not hold weights.
void copy_other_files(const HfModel& model, const fs::path& folder) {
  for (const fs::directory_entry& entry : fs::directory_iterator(model.folder)) {
    const std::string name = entry.path().filename().string(), kind = entry.path().extension().string();
    if (fs::exists(folder / name) || kind == ".safetensors" || name.ends_with(".index.json")) continue;
    std::error_code error;
    if (std::ranges::count(kOtherWeights, kind) > 0 || !entry.is_regular_file(error)) {
      log_info("not copied: {}", entry.path().string());
    } else if (!fs::copy_file(entry.path(), folder / name, error)) {
      throw FileError(fmt::format("cannot copy {}: {}", entry.path().string(), error.message()));
    }
  }
}

}  // namespace

void write_pruned_hf(const HfModel& model, const KeptExperts& kept, const fs::path& folder) {
  const at::NoGradGuard no_grad;
  if (fs::exists(folder)) throw RunFolderError(folder.string() + ": exists; choose another folder");
  PendingFolder pending(folder);
  Written written;
  for (const SafetensorsFile& file : model.files) write_file_of(model, kept, file, pending.path(), written);
  const auto experts = static_cast<std::int64_t>(kept.begin()->second.size());
  write_file(pending.path() / "config.json", pruned_config(model, experts));
  if (!model.index.empty())
    write_file(pending.path() / "model.safetensors.index.json", pruned_index(model, std::move(written)));
  copy_other_files(model, pending.path());
  pending.commit();
}

}  // namespace exfusion
