#include "train/upcycle.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "core/error.h"
#include "io/files.h"
#include "io/json_text.h"
#include "io/safetensors.h"
#include "models/timm_export.h"
#include "train/memory.h"
#include "train/start_weights.h"
#include "train/step.h"
#include "train/versions.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int kUpcycleFormat = 1;
constexpr const char* kRecord = "upcycle.json";
constexpr const char* kFiles[] = {"model.safetensors", "experts.safetensors", "config.json"};

json described(const fs::path& file) {
  return {{"size", fs::file_size(file)}, {"crc32", file_crc32(file)}};
}

json init_options(const FusionConfig& fusion) {
  json options = {{"init", fusion.init}};
  if (fusion.init == "copy_noise") options["noise"] = fusion.noise;
  if (fusion.init == "drop") {
    options["drop_ratio"] = fusion.drop_ratio;
    options["permute"] = fusion.permute;
  }
  return options;
}

UpcycleRecord record_from_json(const json& document) {
  UpcycleRecord record;
  if (document.at("format").get<int>() != kUpcycleFormat)
    throw std::runtime_error(
        fmt::format("format {} (this build reads {})", document.at("format").get<int>(), kUpcycleFormat));
  FusionConfig& fusion = record.fusion;
  fusion.experts = document.at("experts").get<std::int64_t>();
  if (fusion.experts < 1 || fusion.experts > kMaxExperts)
    throw std::runtime_error(fmt::format("experts is {}, must be 1 to {}", fusion.experts, kMaxExperts));
  fusion.init = document.at("init").get<std::string>();
  fusion.noise = document.value("noise", fusion.noise);
  fusion.drop_ratio = document.value("drop_ratio", fusion.drop_ratio);
  fusion.permute = document.value("permute", fusion.permute);
  record.seed = document.at("seed").get<std::uint64_t>();
  record.ffns = document.at("ffns").get<std::vector<std::string>>();
  return record;
}

void check_upcycled_files(const fs::path& folder, const json& files) {
  for (const char* name : kFiles) {
    const fs::path file = folder / name;
    if (!fs::is_regular_file(file)) throw FormatError(fmt::format("{}: missing", file.string()));
    const json& expected = files.at(name);
    if (fs::file_size(file) != expected.at("size").get<std::uint64_t>() ||
        file_crc32(file) != expected.at("crc32").get<std::string>())
      throw FormatError(fmt::format("{}: size or checksum is not what {} says: the file was changed",
                                    file.string(), kRecord));
  }
}

// What a run with these experts starts from.
TrainingState starting_state(const LoadedModel& source, const FusionConfig& fusion, std::uint64_t seed) {
  RunConfig config;
  config.model = source.config;
  config.seed = seed;
  config.fusion = fusion;
  config.fusion->weights = "static";  // any mode starts at 1/N
  config.fusion->from = source.origin.string();
  check_memory(config);
  TrainingState state = make_training_state(config);
  if (state.banks.empty())
    throw FormatError(fmt::format("{}: has no dense FFN to upcycle", source.origin.string()));
  for (ExpertBank& bank : state.banks) bank.fuse();
  return state;
}

void prepare_folder(const fs::path& folder, bool overwrite) {
  if (fs::exists(folder) && !overwrite)
    throw RunFolderError(
        fmt::format("{}: exists; choose another folder or give --overwrite", folder.string()));
  if (fs::exists(folder) && !is_upcycled(folder) && !(fs::is_directory(folder) && fs::is_empty(folder)))
    throw RunFolderError(fmt::format("{}: not an upcycled model (no {}), so --overwrite leaves it alone",
                                     folder.string(), kRecord));
  std::error_code failed;
  if (folder.has_parent_path()) fs::create_directories(folder.parent_path(), failed);
}

void write_and_verify(const fs::path& path, const NamedTensors& tensors) {
  write_safetensors(path.string(), tensors, {{"format", "pt"}});
  const SafetensorsFile file(path.string());
  for (const auto& [name, tensor] : tensors) {
    if (!at::equal(file.read(name), tensor.detach()))
      throw VerificationError(fmt::format("{}: {} reads back with other values", path.string(), name));
  }
}

}  // namespace

bool is_upcycled(const fs::path& folder) {
  return fs::is_regular_file(folder / kRecord);
}

UpcycleRecord read_upcycle_record(const fs::path& folder) {
  const std::string name = (folder / kRecord).string();
  const json document = parse_json_object(read_file(folder / kRecord, 1u << 20), name);
  try {
    UpcycleRecord record = record_from_json(document);
    check_upcycled_files(folder, document.at("files"));
    return record;
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw FormatError(fmt::format("{}: {}", name, error.what()));
  }
}

std::vector<std::string> write_upcycled(const LoadedModel& source, const FusionConfig& fusion,
                                        std::uint64_t seed, const fs::path& folder, bool overwrite) {
  const at::NoGradGuard no_grad;
  prepare_folder(folder, overwrite);
  const TrainingState state = starting_state(source, fusion, seed);
  NamedTensors experts;
  std::vector<std::string> ffns;
  for (const ExpertBank& bank : state.banks) {
    ffns.push_back(bank.name());
    for (auto& item : bank.expert_state()) experts.push_back(std::move(item));
  }

  PendingFolder pending(folder);
  write_and_verify(pending.path() / "model.safetensors", model_tensors(*state.model));
  write_and_verify(pending.path() / "experts.safetensors", experts);
  write_file(pending.path() / "config.json", timm_config_json(source.config.vit, source.mean, source.std));
  json record = init_options(fusion);
  record.update({{"format", kUpcycleFormat}, {"experts", fusion.experts}, {"seed", seed}, {"ffns", ffns}});
  const fs::path dense = find_dense_source(source.origin).file;
  record["source"] = {{"path", dense.string()}, {"crc32", file_crc32(dense)}};
  record["versions"] = {{"exfusion", exfusion_version()}, {"libtorch", libtorch_version()}};
  for (const char* name : kFiles) record["files"][name] = described(pending.path() / name);
  write_file(pending.path() / kRecord, record.dump(1) + "\n");
  read_upcycle_record(pending.path());
  pending.commit();
  return ffns;
}

}  // namespace exfusion
