#include "train/checkpoint.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/log.h"
#include "io/exact_tensors.h"
#include "io/files.h"
#include "io/json_text.h"

namespace exfusion {
namespace {
namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::uint64_t kStateLimit = 16u << 20;  // bytes of a state.json that is read at all
constexpr int kFormat = 1;
constexpr const char* kPruned = ".pruned";

// The average of the parameters, and what else the model keeps: its file loads as model.safetensors does.
NamedTensors average_tensors(const TrainingState& state) {
  NamedTensors tensors = state.ema->state();
  for (const auto& item : state.model->named_buffers()) tensors.emplace_back(item.key(), item.value());
  return tensors;
}

NamedTensors expert_tensors(const TrainingState& state) {
  NamedTensors tensors;
  for (const ExpertBank& bank : state.banks) {
    for (auto& item : bank.expert_state()) tensors.push_back(std::move(item));
  }
  return tensors;
}

NamedTensors optimizer_tensors(const TrainingState& state) {
  NamedTensors tensors = state.dense->state();
  for (const ExpertBank& bank : state.banks) {
    for (auto& item : bank.optimizer_state()) tensors.push_back(std::move(item));
  }
  return tensors;
}

// The files of a checkpoint with the tensors that belong in each.
std::vector<std::pair<std::string, NamedTensors>> checkpoint_files(const TrainingState& state) {
  std::vector<std::pair<std::string, NamedTensors>> files;
  files.emplace_back("model.safetensors", model_tensors(*state.model));
  if (!state.banks.empty()) files.emplace_back("experts.safetensors", expert_tensors(state));
  files.emplace_back("optimizer.safetensors", optimizer_tensors(state));
  if (state.ema) files.emplace_back("ema.safetensors", average_tensors(state));
  return files;
}

json optional_number(const std::optional<double>& value) {
  return value ? json(*value) : json(nullptr);
}

json to_json(const CheckpointInfo& info) {
  return {{"format", kFormat},
          {"step", info.step},
          {"updates", info.updates},
          {"skipped", info.skipped},
          {"skipped_in_row", info.skipped_in_row},
          {"decay_product", info.decay_product},
          {"epoch", info.epoch},
          {"samples", info.samples},
          {"threads", info.threads},
          {"micro_batch", info.micro_batch},
          {"precision", info.precision},
          {"recipe", info.recipe},
          {"recipe_crc32", info.recipe_crc32},
          {"data_checksum", info.data_checksum},
          {"versions", {{"exfusion", info.exfusion}, {"libtorch", info.libtorch}}},
          {"test_accuracy", optional_number(info.test_accuracy)},
          {"test_accuracy_fp32", optional_number(info.test_accuracy_fp32)},
          {"ema_accuracy", optional_number(info.ema_accuracy)},
          {"best", {{"by", info.best_by}, {"accuracy", info.best_accuracy}, {"step", info.best_step}}}};
}

std::optional<double> read_optional(const json& state, const char* key) {
  return state.at(key).is_null() ? std::nullopt : std::optional<double>(state.at(key).get<double>());
}

CheckpointInfo from_json(const json& state) {
  CheckpointInfo info;
  if (state.at("format").get<int>() != kFormat)
    throw std::runtime_error(
        fmt::format("format {} (this build reads {})", state.at("format").get<int>(), kFormat));
  for (auto [key, field] : {std::pair{"step", &info.step},
                            {"updates", &info.updates},
                            {"skipped", &info.skipped},
                            {"skipped_in_row", &info.skipped_in_row},
                            {"epoch", &info.epoch},
                            {"samples", &info.samples},
                            {"threads", &info.threads},
                            {"micro_batch", &info.micro_batch}}) {
    *field = state.at(key).get<std::int64_t>();
    if (*field < 0) throw std::runtime_error(fmt::format("{} is {}", key, *field));
  }
  info.decay_product = state.at("decay_product").get<double>();
  for (auto [key, field] : {std::pair{"precision", &info.precision},
                            {"recipe", &info.recipe},
                            {"recipe_crc32", &info.recipe_crc32},
                            {"data_checksum", &info.data_checksum}})
    *field = state.at(key).get<std::string>();
  info.exfusion = state.at("versions").at("exfusion").get<std::string>();
  info.libtorch = state.at("versions").at("libtorch").get<std::string>();
  info.test_accuracy = read_optional(state, "test_accuracy");
  info.test_accuracy_fp32 = read_optional(state, "test_accuracy_fp32");
  info.ema_accuracy = read_optional(state, "ema_accuracy");
  info.best_by = state.at("best").at("by").get<std::string>();
  info.best_accuracy = state.at("best").at("accuracy").get<double>();
  info.best_step = state.at("best").at("step").get<std::int64_t>();
  if (info.recipe_crc32 != text_crc32(info.recipe))
    throw std::runtime_error("the recipe does not have its checksum");
  if (!state.at("files").is_object()) throw std::runtime_error("files is not an object");
  for (const auto& [name, file] : state.at("files").items()) info.files.push_back(name);
  return info;
}

// Sizes and checksums of the files that state.json lists.
void check_files(const fs::path& checkpoint, const json& files) {
  for (const auto& [name, expected] : files.items()) {
    const fs::path file = checkpoint / name;
    if (name.find('/') != std::string::npos || !fs::is_regular_file(file))
      throw CheckpointError(fmt::format("{}: missing", file.string()));
    const auto size = expected.at("size").get<std::uint64_t>();
    if (fs::file_size(file) != size)
      throw CheckpointError(
          fmt::format("{}: {} bytes, state.json says {}", file.string(), fs::file_size(file), size));
    const auto crc = expected.at("crc32").get<std::string>();
    if (const std::string found = file_crc32(file); found != crc)
      throw CheckpointError(fmt::format("{}: checksum {}, state.json says {}", file.string(), found, crc));
  }
}

// The checksum of a record without its own `crc32`.
std::string record_crc32(json record) {
  record.erase("crc32");
  return text_crc32(record.dump());
}

json parse_state(const fs::path& checkpoint) {
  const fs::path file = checkpoint / "state.json";
  if (!fs::is_regular_file(file))
    throw CheckpointError(fmt::format("{}: no checkpoint (state.json is missing)", checkpoint.string()));
  const json state = parse_json_object(read_file(file, kStateLimit), file.string());
  if (!state.contains("crc32") || state["crc32"] != record_crc32(state))
    throw CheckpointError(
        fmt::format("{}: its contents do not have the checksum that it states", file.string()));
  return state;
}

}  // namespace

std::vector<fs::path> checkpoint_folders(const fs::path& checkpoints) {
  std::vector<fs::path> folders;
  if (!fs::is_directory(checkpoints)) return folders;
  for (const auto& entry : fs::directory_iterator(checkpoints)) {
    const std::string name = entry.path().filename().string();
    if (entry.is_directory() && !entry.is_symlink() && name.starts_with("step-") &&
        name.find('.') == std::string::npos)
      folders.push_back(entry.path());
  }
  // Newest first, by number: beyond 8 digits the names grow longer.
  std::ranges::sort(folders, std::greater{}, [](const fs::path& folder) {
    return std::pair(folder.native().size(), folder.native());
  });
  return folders;
}

std::string checkpoint_name(std::int64_t step) {
  return fmt::format("step-{:08d}", step);
}

void save_checkpoint(const fs::path& checkpoints, const TrainingState& state, CheckpointInfo info, bool) {
  if (state.group.rank() != 0) return;
  info.step = state.step;
  info.updates = state.updates;
  info.skipped = state.skipped;
  info.skipped_in_row = state.skipped_in_row;
  info.decay_product = state.decay_product;
  info.recipe_crc32 = text_crc32(info.recipe);

  PendingFolder folder(checkpoints / checkpoint_name(state.step));
  json files = json::object();
  for (const auto& [name, tensors] : checkpoint_files(state)) {
    const fs::path file = folder.path() / name;
    write_safetensors(file.string(), tensors, {{"format", "pt"}});
    files[name] = {{"size", fs::file_size(file)}, {"crc32", file_crc32(file)}};
    fault_point("checkpoint-file");
  }
  json record = to_json(info);
  record["files"] = std::move(files);
  record["crc32"] = record_crc32(record);
  write_file(folder.path() / "state.json", record.dump(1) + "\n");
  folder.commit();
  fault_point("checkpoint-committed");
  link_checkpoint(checkpoints, "latest", state.step);
}

void link_checkpoint(const fs::path& checkpoints, const std::string& link, std::int64_t step) {
  const std::string name = checkpoint_name(step);
  if (fs::is_directory(checkpoints / name)) replace_link(checkpoints / link, name);
}

void set_aside_newer(const fs::path& checkpoints, std::int64_t step) {
  for (const fs::path& folder : checkpoint_folders(checkpoints)) {
    if (folder.filename() == checkpoint_name(step)) return;
    fs::remove_all(folder.string() + ".damaged");
    fs::rename(folder, folder.string() + ".damaged");
    log_warning("{}: set aside under the name with .damaged", folder.string());
  }
}

void prune_checkpoints(const fs::path& checkpoints, std::int64_t keep) {
  std::error_code none;
  const std::string best = fs::read_symlink(checkpoints / "best", none).string();
  const std::vector<fs::path> folders = checkpoint_folders(checkpoints);
  for (const auto& entry : fs::directory_iterator(checkpoints)) {
    if (entry.path().filename().string().ends_with(kPruned))
      fs::remove_all(entry.path(), none);  // a kill came between
  }
  for (std::size_t i = static_cast<std::size_t>(keep); i < folders.size(); ++i) {
    if (folders[i].filename() == best) continue;
    // A folder that is being removed must not look like a checkpoint.
    std::error_code failed;
    fs::rename(folders[i], folders[i].string() + kPruned, failed);
    if (!failed) fs::remove_all(folders[i].string() + kPruned, failed);
    if (failed) log_warning("{}: cannot be removed: {}", folders[i].string(), failed.message());
  }
}

CheckpointInfo read_checkpoint(const fs::path& checkpoint) {
  const json state = parse_state(checkpoint);
  try {
    CheckpointInfo info = from_json(state);
    check_files(checkpoint, state.at("files"));
    if (std::count(info.files.begin(), info.files.end(), "model.safetensors") == 0)
      throw std::runtime_error("model.safetensors is not listed");
    return info;
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw CheckpointError(fmt::format("{}: {}", (checkpoint / "state.json").string(), error.what()));
  }
}

CheckpointInfo load_checkpoint(const fs::path& checkpoint, TrainingState& state) {
  const at::NoGradGuard no_grad;
  const CheckpointInfo info = read_checkpoint(checkpoint);
  const auto files = checkpoint_files(state);
  for (const std::string& name : info.files) {
    if (std::none_of(files.begin(), files.end(), [&](const auto& file) { return file.first == name; }))
      throw CheckpointError(fmt::format("{}: does not belong to this recipe", (checkpoint / name).string()));
  }
  for (const auto& [name, targets] : files) {
    if (std::count(info.files.begin(), info.files.end(), name) == 0)
      throw CheckpointError(fmt::format("{}: state.json does not list it, and the recipe needs it",
                                        (checkpoint / name).string()));
    read_exactly((checkpoint / name).string(), targets);
  }
  state.step = info.step;
  state.updates = info.updates;
  state.skipped = info.skipped;
  state.skipped_in_row = info.skipped_in_row;
  state.decay_product = info.decay_product;
  for (ExpertBank& bank : state.banks) bank.restored();
  state.parameters->round_bf16();
  return info;
}

std::optional<fs::path> newest_checkpoint(const fs::path& checkpoints) {
  const std::vector<fs::path> folders = checkpoint_folders(checkpoints);
  if (folders.empty()) return std::nullopt;
  for (const fs::path& folder : folders) {
    try {
      read_checkpoint(folder);
      return folder;
    } catch (const BadInput& error) {
      log_warning("checkpoint not used: {}", error.what());
    }
  }
  throw CheckpointError(fmt::format("{}: none of its checkpoints can be used", checkpoints.string()));
}

}  // namespace exfusion
