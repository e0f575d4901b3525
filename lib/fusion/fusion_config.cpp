#include "fusion/fusion_config.h"

#include "core/recipe.h"
#include "fusion/expert_init.h"

namespace exfusion {
namespace {

// Refuses the keys that belong to another choice of `weights`.
void refuse(Section& section, const std::string& weights, const std::vector<std::string>& keys) {
  for (const std::string& key : keys) {
    section.without_effect(key, key + " belongs to weights: " + weights +
                                    (weights == "learned" ? "" : " (its router and memory)"));
  }
}

// What trains a: z of learned weights, the router of memory weights.
void parse_training_of_weights(Section& section, FusionConfig& config) {
  config.lr = section.optional_in_range("lr", 0.0, 1e3);
  config.weight_decay = section.in_range("weight_decay", config.weight_decay, 0.0, 1e3);
  if (section.has("schedule")) config.schedule = ScheduleConfig::parse(section.child("schedule"));
}

void parse_static(Section& section) {
  const std::string why = " belongs to weights: learned or memory; static weights are 1/N and do not train";
  for (const std::string key : {"normalize", "temperature", "lr", "weight_decay"})
    section.without_effect(key, key + why);
  if (section.has("schedule")) {
    ScheduleConfig::parse(section.child("schedule"));  // its keys are known
    section.problem("schedule", "schedule" + why);
  }
}

void parse_learned(Section& section, FusionConfig& config) {
  config.normalize = section.one_of("normalize", config.normalize, {"softmax", "none"});
  if (config.normalize == "softmax") {
    config.temperature = section.in_range("temperature", config.temperature, 1e-6, 1e6);
  } else {
    section.without_effect("temperature", "temperature belongs to normalize: softmax; with none, a = z");
  }
  parse_training_of_weights(section, config);
}

void parse_memory(Section& section, FusionConfig& config) {
  refuse(section, "learned", {"normalize"});
  config.forward = section.one_of("forward", config.forward, {"memory", "blend", "routed"});
  config.momentum = section.in_range("momentum", config.momentum, 0.0, 1.0);
  if (config.momentum == 1.0)
    section.problem("momentum", "momentum must be below 1: the memory would never change");
  config.temperature = section.in_range("temperature", config.temperature, 1e-6, 1e6);
  config.router_std = section.in_range("router_std", config.router_std, 0.0, 1e3);
  config.balance = section.in_range("balance", config.balance, 0.0, 1e6);
  parse_training_of_weights(section, config);
}

void parse_weights(Section& section, FusionConfig& config) {
  config.weights = section.one_of("weights", config.weights, weight_mode_names());
  if (config.weights == "static") parse_static(section);
  if (config.weights == "learned") parse_learned(section, config);
  if (config.weights == "memory") {
    parse_memory(section, config);
  } else {
    refuse(section, "memory", {"forward", "momentum", "router_std", "balance"});
  }
  config.expert_dropout = section.in_range("expert_dropout", config.expert_dropout, 0.0, 1.0);
  config.dirichlet = section.in_range("dirichlet", config.dirichlet, 0.0, 1e6);
  if (config.experts == 1 && (config.expert_dropout > 0.0 || config.dirichlet > 0.0 || config.balance > 0.0))
    section.problem("experts", "expert_dropout, dirichlet and balance act between experts; there is one");
}

void parse_state(Section& section, FusionConfig& config) {
  config.state = section.one_of("state", config.state, {"full", "shared_moments"});
  if (config.shares_moments() && config.experts == 1)
    section.problem("state", "shared_moments shares moments between experts; there is one");
}

void parse_materialize(Section& section, FusionConfig& config) {
  config.materialize = section.get("materialize", config.materialize);
  if (config.materialize) return;
  const auto refuse = [&](const std::string& why) {
    section.problem("materialize", "materialize: false trains one dense FFN in place of the experts, " + why);
  };
  if (config.weights != "static")
    refuse("which equals them for weights: static alone; this one is " + config.weights);
  if (config.expert_dropout > 0.0 || config.dirichlet > 0.0)
    refuse("which equals them for constant weights alone; expert_dropout and dirichlet vary them");
  if (!config.from.empty())
    refuse("and draws their differences again from the seed; with from these depend on another model");
  if (config.shares_moments()) refuse("which has its own moments; state belongs to experts");
}

}  // namespace

std::vector<std::string> weight_mode_names() {
  return {"static", "learned", "memory"};
}

FusionConfig FusionConfig::parse(Section section) {
  FusionConfig config;
  config.experts = section.in_range<std::int64_t>("experts", config.experts, 1, kMaxExperts);
  parse_weights(section, config);
  parse_state(section, config);
  parse_expert_init(section, config);
  parse_materialize(section, config);
  config.layers = section.words("layers", config.layers);
  return config;
}

}  // namespace exfusion
