#include "train/start_weights.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/log.h"
#include "core/recipe.h"
#include "fusion/expert_init.h"
#include "io/exact_tensors.h"
#include "io/files.h"
#include "io/json_text.h"
#include "models/dense_weights.h"
#include "nn/ffn.h"
#include "train/checkpoint.h"
#include "train/upcycle.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;

// Only dense FFNs can be gone on with, or be made into experts.
void check_dense(const fs::path& path, const std::string& ffn) {
  if (ffn == "dense") return;
  throw FormatError(fmt::format("{}: its blocks hold {} experts, and only a dense model can be a start{}",
                                path.string(), ffn, ffn == "ewa" ? "; the run's export/ is one" : ""));
}

DenseSource dense_from_checkpoint(const fs::path& checkpoint) {
  const CheckpointInfo info = read_checkpoint(checkpoint);
  Recipe recipe = Recipe::parse(info.recipe, (checkpoint / "state.json").string() + " (recipe)");
  const ViTConfig vit = ModelConfig::parse(recipe.root().child("model")).vit;
  check_dense(checkpoint, vit.ffn.name);
  return {checkpoint / "model.safetensors", vit.heads};
}

// Of a timm config.json, which has model_args only where the model is not one of timm's own names.
std::optional<std::int64_t> heads_of_timm(const fs::path& config) {
  if (!fs::is_regular_file(config)) return std::nullopt;
  const nlohmann::json document = parse_json_object(read_file(config, 1u << 20), config.string());
  const auto arguments = document.find("model_args");
  if (arguments == document.end() || !arguments->is_object()) return std::nullopt;
  const auto heads = arguments->find("num_heads");
  if (heads == arguments->end() || !heads->is_number_integer()) return std::nullopt;
  return heads->get<std::int64_t>();
}

DenseSource from_file(const fs::path& file) {
  if (file.extension() != ".safetensors")
    throw FormatError(fmt::format(
        "{}: only .safetensors files are read (docs/upcycling.md has the Python line that converts others)",
        file.string()));
  return {file, heads_of_timm(file.parent_path() / "config.json")};
}

// Whether the recipe says how experts come about exactly when fusion.from does not hold them already. One
// expert is no matter of how: it may also start from the folder's dense model.
void check_init(const FusionConfig& fusion) {
  const bool stored = is_upcycled(fusion.from);
  if (stored && fusion.init != "stored" && fusion.experts > 1)
    throw RecipeError(fmt::format(
        "fusion.from: {} holds experts already (made with init: {}): leave fusion.init and its keys out",
        fusion.from, read_upcycle_record(fusion.from).fusion.init));
  if (!stored && fusion.init == "stored")
    throw RecipeError(
        fmt::format("fusion.from: {} is a dense model: fusion.init must say how its FFNs become experts "
                    "(copy, copy_noise, "
                    "drop or split)",
                    fusion.from));
}

// Whether the folder's experts are those that the recipe asks for, `ffns` the ones that it fuses.
void check_record(const FusionConfig& fusion, const UpcycleRecord& record,
                  const std::vector<std::string>& ffns) {
  if (record.fusion.experts != fusion.experts)
    throw RecipeError(fmt::format("fusion.from: {} holds {} experts per FFN, fusion.experts is {}",
                                  fusion.from, record.fusion.experts, fusion.experts));
  if (record.ffns != ffns)
    throw RecipeError(fmt::format("fusion.from: {} holds experts for {}, fusion.layers chooses {}",
                                  fusion.from, fmt::join(record.ffns, ", "), fmt::join(ffns, ", ")));
  FusionConfig as_made = fusion;
  as_made.init = record.fusion.init;
  as_made.noise = record.fusion.noise;
  as_made.drop_ratio = record.fusion.drop_ratio;
  as_made.permute = record.fusion.permute;
  if (const std::string problem = separation_problem(as_made); !problem.empty())
    throw RecipeError(
        fmt::format("fusion.from: {} was made with init: {}: {}", fusion.from, record.fusion.init, problem));
}

bool lies_in(const fs::path& path, const fs::path& folder) {
  const fs::path relative = fs::weakly_canonical(path).lexically_relative(fs::weakly_canonical(folder));
  return !relative.empty() && *relative.begin() != "..";
}

}  // namespace

void check_sources_are_outside(const RunConfig& config, const fs::path& folder) {
  for (const std::string& source :
       {config.init_from, config.fusion ? config.fusion->from : std::string(), config.control.from}) {
    if (!source.empty() && lies_in(source, folder))
      throw UsageError(fmt::format(
          "--overwrite would remove {}, which this run starts from: choose another --out", source));
  }
}

DenseSource find_dense_source(const fs::path& path) {
  if (fs::is_regular_file(path)) return from_file(path);
  if (!fs::is_directory(path))
    throw FormatError(
        fmt::format("{}: no such file or folder; give a .safetensors file, a folder with "
                    "model.safetensors, a checkpoint or a run",
                    path.string()));
  if (fs::is_directory(path / "checkpoints")) {
    const auto newest = newest_checkpoint(path / "checkpoints");
    if (!newest) throw CheckpointError(fmt::format("{}: has no checkpoint yet", path.string()));
    return dense_from_checkpoint(*newest);
  }
  if (fs::is_regular_file(path / "state.json")) return dense_from_checkpoint(path);
  if (fs::is_regular_file(path / "model.safetensors")) return from_file(path / "model.safetensors");
  throw FormatError(
      fmt::format("{}: holds no model.safetensors, and is neither a run (checkpoints/) nor a checkpoint "
                  "(state.json); docs/upcycling.md has the Python line that converts other files",
                  path.string()));
}

void load_start_weights(const RunConfig& config, Model& model) {
  const bool upcycles = config.fusion && !config.fusion->from.empty();
  if (!upcycles && config.init_from.empty()) return;
  const std::string& from = upcycles ? config.fusion->from : config.init_from;
  const DenseSource source = find_dense_source(from);
  if (upcycles) check_init(*config.fusion);
  const std::int64_t heads = config.model.vit.heads;
  if (source.heads && *source.heads != heads)
    throw FormatError(
        fmt::format("{}: trained with {} attention heads, model.heads is {}: the same weights "
                    "would be another function",
                    from, *source.heads, heads));
  const DenseWeightsReport report = load_dense_weights(model, source.file.string(), config.init_skip);
  for (const std::string& line : report.lines()) log_info("{}", line);
  if (!source.heads)
    log_warning("{}: nothing says how many attention heads it was trained with; the recipe's {} are used",
                from, heads);
}

void load_stored_experts(const RunConfig& config, std::deque<ExpertBank>& banks) {
  if (!config.fusion || config.fusion->init != "stored") return;
  const std::string& from = config.fusion->from;
  std::vector<std::string> names;
  for (const ExpertBank& bank : banks) names.push_back(bank.name());
  check_record(*config.fusion, read_upcycle_record(from), names);

  NamedTensors targets;
  std::vector<std::pair<TensorPart, at::Tensor>> parts;  // of a shard, with the whole tensors
  std::vector<at::Tensor> weights;
  for (const ExpertBank& bank : banks) {
    for (const TensorPart& part : bank.expert_parts()) {
      if (part.name.find(".fc") == std::string::npos) continue;  // a itself, the router
      targets.emplace_back(part.name, part.shape.empty() ? part.values : at::empty(part.shape));
      if (!part.shape.empty()) parts.emplace_back(part, targets.back().second);
    }
    weights.push_back(at::empty({bank.experts()}));
    targets.emplace_back(bank.name() + ".a", weights.back());
  }
  const std::string file = (fs::path(from) / "experts.safetensors").string();
  read_exactly(file, targets);
  for (const auto& [part, whole] : parts)
    part.values.copy_(whole.flatten(1).narrow(1, part.first_column, part.values.size(1)));
  for (std::size_t i = 0; i < banks.size(); ++i) {
    const std::vector<float>& a = banks[i].a();
    if (!std::equal(a.begin(), a.end(), weights[i].const_data_ptr<float>()))
      throw FormatError(fmt::format("{}: {}.a are not the weights from which training starts, 1/{}", file,
                                    banks[i].name(), a.size()));
    banks[i].experts_loaded();
  }
}

}  // namespace exfusion
