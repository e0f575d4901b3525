#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "core/recipe.h"
#include "models/vit.h"

namespace exfusion {
namespace {

constexpr std::int64_t kMaxTokens = 16384;  // the attention of one image and head holds tokens^2 numbers
constexpr double kMaxParameters = 20e9;     // 80 GB in fp32: a slip of the pen, not a model for this program

struct Size {
  const char* name;
  std::int64_t dim, depth, heads;
};
constexpr std::array<Size, 4> kSizes = {
    {{"Ti", 192, 12, 3}, {"S", 384, 12, 6}, {"B", 768, 12, 12}, {"L", 1024, 24, 16}}};

std::int64_t read_dimension(Section& section, const char* key, std::int64_t preset, std::int64_t high) {
  if (preset != 0) return section.in_range<std::int64_t>(key, preset, 1, high);
  return section.require_in_range<std::int64_t>(key, 1, high);
}

void check(Section& section, const ViTConfig& config, bool preset) {
  const bool given = section.has("dim") && section.has("depth") && section.has("heads");
  if (!preset && !given) return;  // stand-ins for what is missing; that is a problem already
  if (config.dim % config.heads != 0) {
    section.problem("heads", fmt::format("{} heads do not divide dim {}", config.heads, config.dim));
  }
  if (config.hidden < 1) {
    section.problem("mlp_ratio", "dim * mlp_ratio must be at least 1");
  } else if (static_cast<double>(config.hidden) < 0.01 * static_cast<double>(config.dim)) {
    section.problem("mlp_ratio", "the hidden width must be at least dim / 100");
  }
  if (config.drop_path >= 1.0) section.problem("drop_path", "drop_path must be below 1");
  if (config.image % config.patch != 0) {
    section.problem("patch",
                    fmt::format("patches of {} do not divide images of {}", config.patch, config.image));
  } else if (config.tokens() > kMaxTokens) {
    section.problem("patch",
                    fmt::format("images of {} in patches of {} make {} tokens; at most {} are supported",
                                config.image, config.patch, config.tokens(), kMaxTokens));
  } else if (const double parameters = config.parameter_count(); parameters > kMaxParameters) {
    section.problem("dim", fmt::format("the model would have {:.1e} parameters; at most {:.0e} are supported",
                                       parameters, kMaxParameters));
  }
}

}  // namespace

ViTConfig ViTConfig::parse(Section& section) {
  std::vector<std::string> names = {"none"};
  for (const auto& size : kSizes) names.emplace_back(size.name);
  const auto name = section.one_of("size", "none", names);
  Size preset{"none", 0, 0, 0};
  for (const auto& size : kSizes) {
    if (name == size.name) preset = size;
  }

  ViTConfig config;
  config.dim = read_dimension(section, "dim", preset.dim, 16384);
  config.depth = read_dimension(section, "depth", preset.depth, 256);
  config.heads = read_dimension(section, "heads", preset.heads, 1024);
  const auto ratio = section.in_range<double>("mlp_ratio", 4.0, 0.01, 64.0);
  config.hidden = std::llround(static_cast<double>(config.dim) * ratio);
  config.patch = section.in_range<std::int64_t>("patch", 16, 1, 4096);
  config.image = section.in_range<std::int64_t>("image", 224, 1, 4096);
  config.channels = section.in_range<std::int64_t>("channels", 3, 1, 1024);
  config.classes = section.in_range<std::int64_t>("classes", 1000, 1, 1000000);
  config.pool = section.one_of("pool", "token", {"token", "avg"});
  config.drop_path = section.in_range<double>("drop_path", 0.0, 0.0, 1.0);
  if (const auto ffn = section.optional_child("ffn")) config.ffn = FfnConfig::parse(*ffn, config.depth);
  check(section, config, preset.dim != 0);
  return config;
}

std::int64_t ViTConfig::tokens() const {
  return (image / patch) * (image / patch) + (pool == "token" ? 1 : 0);
}

double ViTConfig::parameter_count() const {
  const auto d = static_cast<double>(dim);
  const double norms_and_attention = 4 * d + (3 * d * d + 3 * d) + (d * d + d);
  const auto chosen = static_cast<double>(std::ranges::count(ffn.chosen_blocks(depth), true));
  const double ffns = chosen * ffn.stored_numbers(dim, hidden) +
                      (static_cast<double>(depth) - chosen) * FfnConfig{}.stored_numbers(dim, hidden);
  const double embedding = static_cast<double>(channels * patch * patch) * d + d;
  const double tokens_and_class = static_cast<double>(tokens() + (pool == "token" ? 1 : 0)) * d;
  const double head = 2 * d + static_cast<double>(classes) * (d + 1);
  return static_cast<double>(depth) * norms_and_attention + ffns + embedding + tokens_and_class + head;
}

}  // namespace exfusion
