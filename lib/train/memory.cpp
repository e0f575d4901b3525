#include "train/memory.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <limits>
#include <optional>
#include <vector>

#include "core/error.h"
#include "nn/layer_selection.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;

// How many FFNs have experts in memory.
double fused_ffns(const RunConfig& config) {
  if (!config.fusion || !config.fusion->materialize) return 0.0;
  const std::vector<bool> chosen = select_layers(config.fusion->layers, config.model.vit.depth);
  return static_cast<double>(std::ranges::count(chosen, true));
}

// What decides the weights of one FFN's experts: a, the logits with moments, the router with moments and its
// Jacobian, or two where that of the step before is kept.
double deciding_bytes(const FusionConfig& fusion, std::int64_t dim) {
  const auto n = static_cast<double>(fusion.experts), width = static_cast<double>(dim);
  if (fusion.weights == "learned") return 28.0 * n;
  if (fusion.weights != "memory") return 4.0 * n;
  return 12.0 * n + 12.0 * n * width + (fusion.routes_in_step() ? 4.0 : 8.0) * n * n * width;
}

std::string bytes_text(double bytes) {
  constexpr std::array<const char*, 5> kUnits = {"kB", "MB", "GB", "TB", "PB"};
  std::size_t unit = 0;
  for (bytes /= 1e3; bytes >= 1e3 && unit + 1 < kUnits.size(); ++unit) bytes /= 1e3;
  return fmt::format("{:.1f} {}", bytes, kUnits[unit]);
}

std::string parts_text(const StateMemory& state) {
  std::string text = fmt::format("weights {}, gradients {}, moments {}", bytes_text(state.weights),
                                 bytes_text(state.gradients), bytes_text(state.moments));
  if (state.experts > 0.0) text += fmt::format(", experts with moments {}", bytes_text(state.experts));
  if (state.rest > 0.0)
    text += fmt::format(", averages, copies in bf16 and routers {}", bytes_text(state.rest));
  return text;
}

// What would need less.
std::vector<std::string> advice(const RunConfig& config, int world) {
  std::vector<std::string> words;
  if (config.fusion) {
    words = {"fewer fusion.experts or fusion.layers", "fusion.state: shared_moments"};
    if (config.fusion->weights == "static") words.emplace_back("fusion.materialize: false");
  }
  if (world > 1 && config.dist.shard != "all") words.emplace_back("dist.shard: experts or all");
  if (config.model.vit.ffn.name != "dense") words.emplace_back("fewer model.ffn.experts");
  if (config.train.ema > 0.0) words.emplace_back("train.ema: 0");
  words.emplace_back("a smaller model");
  return words;
}

// The number behind `key` in a file of lines "key number …"; with key "", of the first line.
std::optional<double> number_in(const fs::path& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string word; key.empty() || file >> word;) {
    double number = 0.0;
    if (key.empty() || word == key) return file >> number ? std::optional(number) : std::nullopt;
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return std::nullopt;
}

// What one version of control groups calls things.
struct ControlGroups {
  const char *mount, *limit, *usage, *reclaimable;
};
constexpr ControlGroups kVersion1{"sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
                                  "total_inactive_file"};
constexpr ControlGroups kVersion2{"sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"};

// The least that is left in the group and those above it. Groups that a container does not see are left out.
double left_in_group(const fs::path& root, const ControlGroups& groups, fs::path group) {
  double left = std::numeric_limits<double>::infinity();
  for (;; group = group.parent_path()) {
    const fs::path folder = root / groups.mount / group;
    const auto limit = number_in(folder / groups.limit, ""), usage = number_in(folder / groups.usage, "");
    const double files = number_in(folder / "memory.stat", groups.reclaimable).value_or(0.0);
    if (limit && usage) left = std::min(left, std::max(0.0, *limit - *usage + files));
    if (group.empty()) return left;
  }
}

}  // namespace

StateMemory state_memory(const RunConfig& config, int world) {
  const ViTConfig& vit = config.model.vit;
  const double model = vit.parameter_count(), ffns = fused_ffns(config),
               fused = ffns * FfnConfig{}.stored_numbers(vit.dim, vit.hidden);  // as dense ones
  StateMemory state;
  state.weights = state.gradients = 4.0 * model;
  state.moments = 8.0 * (model - fused) / (config.dist.shard == "all" ? world : 1);
  if (config.train.ema > 0.0) state.rest += 4.0 * model;
  if (config.train.precision == "bf16" && config.train.device == "cpu") state.rest += 2.0 * model;
  if (ffns == 0.0) return state;
  const auto experts = static_cast<double>(config.fusion->experts);
  state.experts = (4.0 * experts + 8.0 * (config.fusion->shares_moments() ? 1.0 : experts)) * fused /
                  (config.dist.shard == "none" ? 1 : world);
  if (!config.fusion->from.empty()) state.rest += 4.0 * fused;
  state.rest += ffns * deciding_bytes(*config.fusion, vit.dim);
  return state;
}

double available_memory(const fs::path& root) {
  double available = std::numeric_limits<double>::infinity();
  if (const auto kilobytes = number_in(root / "proc/meminfo", "MemAvailable:")) available = 1024 * *kilobytes;
  std::ifstream groups(root / "proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // number:controllers:/path
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const fs::path path = fs::path(line.substr(second + 1)).relative_path();
    if (controllers.find(",memory,") != std::string::npos)
      available = std::min(available, left_in_group(root, kVersion1, path));
    if (controllers == ",,") available = std::min(available, left_in_group(root, kVersion2, path));
  }
  return available;
}

std::string memory_text(const RunConfig& config, int world, int local_world) {
  const StateMemory state = state_memory(config, world);
  return fmt::format(
      "{} of state{}: {}; {} of memory are available{}. Activations on top: train.micro_batch and "
      "train.recompute bound them",
      bytes_text(state.total()), world > 1 ? " per rank" : "", parts_text(state),
      bytes_text(available_memory()),
      local_world > 1 ? fmt::format(" to the {} ranks of this machine together", local_world) : "");
}

void check_memory(const RunConfig& config, int world, int local_world) {
  const StateMemory state = state_memory(config, world);
  const double available = available_memory();
  if (local_world * state.total() <= available) return;
  throw RecipeError(
      fmt::format("the run's state needs {}{} ({}), and {} of memory are available; less is needed by {}",
                  bytes_text(state.total()),
                  local_world > 1 ? fmt::format(" for each of {} processes here", local_world) : "",
                  parts_text(state), bytes_text(available), fmt::join(advice(config, world), ", ")));
}

}  // namespace exfusion
