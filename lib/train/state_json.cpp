#include "train/state_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "io/files.h"
#include "io/json_text.h"

namespace exfusion {
namespace {
namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::uint64_t kStateLimit = 16u << 20;  // bytes of a state.json that is read at all
constexpr int kStateFormat = 1;

json optional_number(const std::optional<double>& value) {
  return value ? json(*value) : json(nullptr);
}

json info_json(const CheckpointInfo& info) {
  return {{"format", kStateFormat},
          {"step", info.step},
          {"updates", info.updates},
          {"skipped", info.skipped},
          {"skipped_in_row", info.skipped_in_row},
          {"decay_product", info.decay_product},
          {"epoch", info.epoch},
          {"samples", info.samples},
          {"world", info.world},
          {"threads", info.threads},
          {"micro_batch", info.micro_batch},
          {"precision", info.precision},
          {"reduction", info.reduction},
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

CheckpointInfo info_from_json(const json& state) {
  CheckpointInfo info;
  if (state.at("format").get<int>() != kStateFormat)
    throw std::runtime_error(
        fmt::format("format {} (this build reads {})", state.at("format").get<int>(), kStateFormat));
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
  info.world = state.value("world", info.world);  // absent before there were runs of several ranks
  if (info.world < 1) throw std::runtime_error(fmt::format("world is {}", info.world));
  info.reduction = state.value("reduction", info.reduction);
  if (info.reduction != "fast" && info.reduction != "deterministic")
    throw std::runtime_error(fmt::format("reduction is '{}'", info.reduction));
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
  return info;
}

// Sizes and checksums of the files that state.json lists.
void check_checkpoint_files(const fs::path& checkpoint, const std::map<std::string, FileRecord>& files) {
  for (const auto& [name, expected] : files) {
    const fs::path file = checkpoint / name;
    if (name.find('/') != std::string::npos || !fs::is_regular_file(file))
      throw CheckpointError(fmt::format("{}: missing", file.string()));
    if (fs::file_size(file) != expected.size)
      throw CheckpointError(
          fmt::format("{}: {} bytes, state.json says {}", file.string(), fs::file_size(file), expected.size));
    if (const std::string found = file_crc32(file); found != expected.crc32)
      throw CheckpointError(
          fmt::format("{}: checksum {}, state.json says {}", file.string(), found, expected.crc32));
  }
}

// The checksum of a record without its own `crc32`.
std::string record_crc32(json record) {
  record.erase("crc32");
  return text_crc32(record.dump());
}

}  // namespace

std::string state_text(const StateRecord& record) {
  json state = info_json(record.info);
  json& files = state["files"] = json::object();
  for (const auto& [name, file] : record.files) files[name] = {{"size", file.size}, {"crc32", file.crc32}};
  state["crc32"] = record_crc32(state);
  return state.dump(1) + "\n";
}

StateRecord parse_state(const std::string& text, const fs::path& file) {
  const json state = parse_json_object(text, file.string());
  if (!state.contains("crc32") || state["crc32"] != record_crc32(state))
    throw CheckpointError(
        fmt::format("{}: its contents do not have the checksum that it states", file.string()));
  try {
    StateRecord record{.info = info_from_json(state), .files = {}};
    if (!state.at("files").is_object()) throw std::runtime_error("files is not an object");
    for (const auto& [name, entry] : state.at("files").items()) {
      record.files[name] = {.size = entry.at("size").get<std::uint64_t>(),
                            .crc32 = entry.at("crc32").get<std::string>()};
      record.info.files.push_back(name);
    }
    if (!record.files.contains("model.safetensors"))
      throw std::runtime_error("model.safetensors is not listed");
    return record;
  } catch (const std::exception& error) {
    throw CheckpointError(fmt::format("{}: {}", file.string(), error.what()));
  }
}

StateRecord checked_state(const fs::path& checkpoint) {
  const fs::path file = checkpoint / "state.json";
  if (!fs::is_regular_file(file))
    throw CheckpointError(fmt::format("{}: no checkpoint (state.json is missing)", checkpoint.string()));
  StateRecord record = parse_state(read_file(file, kStateLimit), file);
  check_checkpoint_files(checkpoint, record.files);
  return record;
}

}  // namespace exfusion
