#include "nn/ffn_config.h"

#include <algorithm>

#include "core/recipe.h"
#include "nn/ewa_ffn.h"
#include "nn/ffn.h"
#include "nn/layer_selection.h"
#include "nn/smear_ffn.h"
#include "nn/topk_ffn.h"

namespace exfusion {
namespace {

constexpr std::int64_t kMaxExperts = 256;

void parse_dense(Section&, FfnConfig&) {}

void parse_smear(Section&, FfnConfig&) {}

void parse_topk(Section& section, FfnConfig& config) {
  config.top_k = section.in_range<std::int64_t>("top_k", config.top_k, 1, kMaxExperts);
  if (config.top_k > config.experts)
    section.problem("top_k", section.path() + ".top_k: " + std::to_string(config.top_k) + " of " +
                                 std::to_string(config.experts) + " experts");
  if (config.top_k > 1) {
    config.renormalize = section.get("renormalize", config.renormalize);
  } else {
    section.without_effect("renormalize",
                           "renormalize belongs to top_k >= 2; one gate that is always 1 would not train");
  }
  config.capacity_factor = section.in_range("capacity_factor", config.capacity_factor, 0.0, 1e3);
  config.balance_loss = section.in_range("balance_loss", config.balance_loss, 0.0, 1e3);
  config.z_loss = section.in_range("z_loss", config.z_loss, 0.0, 1e3);
  config.bias_balance = section.in_range("bias_balance", config.bias_balance, 0.0, 1.0);
}

void parse_ewa(Section& section, FfnConfig& config) {
  config.share_rate = section.in_range("share_rate", config.share_rate, 0.0, 1.0);
}

double dense_numbers(const FfnConfig&, double dim, double hidden) {
  return 2 * dim * hidden + hidden + dim;
}

double expert_numbers(const FfnConfig& config, double dim, double hidden) {
  return static_cast<double>(config.experts) * dense_numbers(config, dim, hidden);
}

double routed_numbers(const FfnConfig& config, double dim, double hidden) {
  return expert_numbers(config, dim, hidden) + static_cast<double>(config.experts) * dim;
}

double topk_numbers(const FfnConfig& config, double dim, double hidden) {
  return routed_numbers(config, dim, hidden) +
         (config.bias_balance > 0.0 ? static_cast<double>(config.experts) : 0.0);
}

std::shared_ptr<FeedForward> make_dense(const FfnConfig&, std::int64_t dim, std::int64_t hidden,
                                        std::int64_t) {
  return std::make_shared<Ffn>(dim, hidden);
}

template <class T>
std::shared_ptr<FeedForward> make(const FfnConfig& config, std::int64_t dim, std::int64_t hidden,
                                  std::int64_t ffn) {
  return std::make_shared<T>(config, dim, hidden, ffn);
}

struct Kind {
  const char* name;
  std::vector<std::string> keys;  // beside name, experts and layers
  void (*parse)(Section&, FfnConfig&);
  double (*stored_numbers)(const FfnConfig&, double dim, double hidden);
  std::shared_ptr<FeedForward> (*make)(const FfnConfig&, std::int64_t dim, std::int64_t hidden,
                                       std::int64_t ffn);
};

const std::vector<Kind>& kinds() {
  static const std::vector<Kind> all = {
      {"dense", {}, parse_dense, dense_numbers, make_dense},
      {"topk",
       {"top_k", "renormalize", "capacity_factor", "balance_loss", "z_loss", "bias_balance"},
       parse_topk,
       topk_numbers,
       make<TopkFfn>},
      {"smear", {}, parse_smear, routed_numbers, make<SmearFfn>},
      {"ewa", {"share_rate"}, parse_ewa, expert_numbers, make<EwaFfn>},
  };
  return all;
}

const Kind& kind_of(const std::string& name) {
  return *std::ranges::find(kinds(), name, [](const Kind& kind) { return std::string(kind.name); });
}

}  // namespace

FfnConfig FfnConfig::parse(Section section, std::int64_t blocks) {
  FfnConfig config;
  config.name = section.one_of("name", config.name, ffn_names());
  for (const Kind& kind : kinds()) {
    if (kind.name == config.name) continue;
    for (const std::string& key : kind.keys)
      section.without_effect(key, section.path() + "." + key + " belongs to name: " + kind.name);
  }
  if (config.name == "dense") {
    for (const char* key : {"experts", "layers"})
      section.without_effect(key, section.path() + "." + key + " has no effect on dense FFNs");
    return config;
  }
  config.experts = section.in_range<std::int64_t>("experts", config.experts, 1, kMaxExperts);
  config.layers = section.words("layers", config.layers);
  if (const std::string problem = layer_selection_problem(config.layers, blocks); !problem.empty()) {
    section.problem("layers", section.path() + "." + problem);
    config.layers = {"all"};
  }
  kind_of(config.name).parse(section, config);
  return config;
}

std::vector<bool> FfnConfig::chosen_blocks(std::int64_t blocks) const {
  return select_layers(layers, blocks);
}

double FfnConfig::stored_numbers(std::int64_t dim, std::int64_t hidden) const {
  return kind_of(name).stored_numbers(*this, static_cast<double>(dim), static_cast<double>(hidden));
}

std::vector<std::string> ffn_names() {
  std::vector<std::string> names;
  for (const Kind& kind : kinds()) names.emplace_back(kind.name);
  return names;
}

std::shared_ptr<FeedForward> make_ffn(const FfnConfig& config, std::int64_t dim, std::int64_t hidden,
                                      std::int64_t ffn) {
  return kind_of(config.name).make(config, dim, hidden, ffn);
}

}  // namespace exfusion
