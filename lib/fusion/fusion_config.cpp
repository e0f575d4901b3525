#include "fusion/fusion_config.h"

#include <algorithm>
#include <charconv>

#include "core/error.h"
#include "core/recipe.h"

namespace exfusion {
namespace {

constexpr const char* kLayersForm =
    "layers must be all, last:k with k >= 1, or a list of different block numbers";

std::optional<std::int64_t> whole_number(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool leading_zero = text.size() > 1 && text.front() == '0';
  if (leading_zero || error != std::errc() || end != text.data() + text.size() || value < 0)
    return std::nullopt;
  return value;
}

// The k of "last:k".
std::optional<std::int64_t> last_count(const std::vector<std::string>& layers) {
  if (layers.size() != 1 || !layers[0].starts_with("last:")) return std::nullopt;
  const auto count = whole_number(std::string_view(layers[0]).substr(5));
  return count && *count >= 1 ? count : std::nullopt;
}

bool well_formed(const std::vector<std::string>& layers) {
  if (layers == std::vector<std::string>{"all"} || last_count(layers)) return true;
  std::vector<std::int64_t> seen;
  for (const std::string& layer : layers) {
    const auto number = whole_number(layer);
    if (!number || std::ranges::find(seen, *number) != seen.end()) return false;
    seen.push_back(*number);
  }
  return !seen.empty();
}

void parse_weights(Section& section, FusionConfig& config) {
  config.weights = section.one_of("weights", config.weights, weight_mode_names());
  if (config.weights != "learned") {
    const std::string why = " belongs to weights: learned; static weights are 1/N and do not train";
    for (const std::string key : {"normalize", "temperature", "lr", "weight_decay"})
      section.without_effect(key, key + why);
    if (section.has("schedule")) {
      ScheduleConfig::parse(section.child("schedule"));  // its keys are known
      section.problem("schedule", "schedule" + why);
    }
    return;
  }
  config.normalize = section.one_of("normalize", config.normalize, {"softmax", "none"});
  if (config.normalize == "softmax") {
    config.temperature = section.in_range("temperature", config.temperature, 1e-6, 1e6);
  } else {
    section.without_effect("temperature", "temperature belongs to normalize: softmax; with none, a = z");
  }
  config.lr = section.optional_in_range("lr", 0.0, 1e3);
  config.weight_decay = section.in_range("weight_decay", config.weight_decay, 0.0, 1e3);
  if (section.has("schedule")) config.schedule = ScheduleConfig::parse(section.child("schedule"));
}

void parse_init(Section& section, FusionConfig& config) {
  config.init =
      section.one_of("init", config.init, {"independent", "independent_scaled", "copy", "copy_noise"});
  if (config.init == "copy_noise") {
    config.noise = section.in_range("noise", config.noise, 0.0, 1e3);
  } else {
    section.without_effect("noise", "noise belongs to init: copy_noise; this one is " + config.init);
  }
  const bool copies = config.init == "copy" || (config.init == "copy_noise" && config.noise == 0.0);
  if (copies && config.experts >= 2) {
    section.problem("init",
                    "identical experts with equal weights receive identical gradients and never separate, so "
                    "this would be "
                    "dense training; use independent, independent_scaled, or copy_noise with noise > 0");
  }
}

}  // namespace

std::vector<std::string> weight_mode_names() {
  return {"static", "learned"};
}

FusionConfig FusionConfig::parse(Section section) {
  FusionConfig config;
  config.experts = section.in_range<std::int64_t>("experts", config.experts, 1, kMaxExperts);
  parse_weights(section, config);
  parse_init(section, config);
  config.layers = section.words("layers", config.layers);
  if (!well_formed(config.layers)) {
    section.problem("layers", kLayersForm);
    config.layers = {"all"};
  }
  return config;
}

std::vector<bool> fused_layers(const FusionConfig& config, std::int64_t count) {
  const auto blocks = std::to_string(count);
  if (!well_formed(config.layers)) throw RecipeError("fusion.layers: " + std::string(kLayersForm));
  std::vector<bool> fused(static_cast<std::size_t>(count), config.layers[0] == "all");
  if (const auto last = last_count(config.layers)) {
    if (*last > count) {
      throw RecipeError("fusion.layers: " + config.layers[0] + " of a model with " + blocks + " blocks");
    }
    std::fill(fused.end() - *last, fused.end(), true);
  } else if (config.layers[0] != "all") {
    for (const std::string& layer : config.layers) {
      const std::int64_t number = whole_number(layer).value();
      if (number >= count) {
        throw RecipeError("fusion.layers: block " + layer + " of a model with " + blocks +
                          " blocks (the first is 0)");
      }
      fused[static_cast<std::size_t>(number)] = true;
    }
  }
  return fused;
}

}  // namespace exfusion
