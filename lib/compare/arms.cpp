#include "compare/arms.h"

#include <fmt/format.h>

#include <algorithm>
#include <sstream>

#include "core/error.h"
#include "core/log.h"
#include "core/recipe.h"

namespace exfusion {
namespace {

constexpr bool kControl = true, kCandidate = false;

}  // namespace

const std::vector<Arm>& all_arms() {
  static const std::vector<Arm> arms = {
      {"dense", {"control=dense"}, kControl, "the same recipe without experts: what all else is compared to"},
      {"static", {"fusion.weights=static"}, kCandidate, "experts fused with equal weights"},
      {"learned",
       {"fusion.weights=learned"},
       kCandidate,
       "experts fused with a softmax of one trained number each"},
      {"learned_free",
       {"fusion.weights=learned", "fusion.normalize=none"},
       kCandidate,
       "experts fused with trained weights that need not sum to 1"},
      {"memory",
       {"fusion.weights=memory", "fusion.forward=memory"},
       kCandidate,
       "experts fused with the momentum memory of a router"},
      {"memory_blend",
       {"fusion.weights=memory", "fusion.forward=blend"},
       kCandidate,
       "memory, the present batch blended in"},
      {"memory_routed",
       {"fusion.weights=memory", "fusion.forward=routed"},
       kCandidate,
       "memory only for the collapse; training uses the present batch's routing"},
      {"topk",
       {"control=dense", "model.ffn.name=topk"},
       kCandidate,
       "a mixture of experts with top-k routing; deployed with all its experts"},
      {"smear",
       {"control=dense", "model.ffn.name=smear"},
       kCandidate,
       "experts merged per image by a router; deployed with all its experts"},
      {"ewa",
       {"control=dense", "model.ffn.name=ewa"},
       kControl,
       "experts with random tokens each, averaged into a dense model"},
      {"ema",
       {"control=dense", "train.ema=0.99"},
       kControl,
       "dense; scored is the moving average of its weights, decay 0.99 (about the last 100 steps)",
       Scored::moving},
      {"average",
       {"control=dense"},
       kControl,
       "dense; scored is the mean of its last 5 checkpoints, 2 % of the steps apart",
       Scored::uniform_soup},
      {"dense_init_scaled",
       {"control=dense_init_scaled"},
       kControl,
       "dense, FFNs starting with the smaller deviation that a mean of experts has"},
      {"dense_lr_scaled",
       {"control=dense_lr_scaled"},
       kControl,
       "dense, FFN learning rates scaled by the mean sum |a| of a fused run of the comparison",
       Scored::model,
       true},
      {"dense_lr2", {"control=dense_lr2"}, kControl, "dense with twice the learning rate"},
      {"dense_gain", {"control=dense_gain"}, kControl, "dense with one trained factor per FFN"},
  };
  return arms;
}

std::vector<Arm> parse_arms(const std::string& list) {
  std::vector<std::string> names;
  for (const Arm& arm : all_arms()) names.push_back(arm.name);
  std::vector<Arm> chosen;
  const auto is_chosen = [&](const std::string& name) {
    return std::ranges::any_of(chosen, [&](const Arm& arm) { return arm.name == name; });
  };
  std::istringstream words(list);
  for (std::string word; std::getline(words, word, ',');) {
    const auto found = std::ranges::find(all_arms(), word, &Arm::name);
    if (found == all_arms().end()) {
      const std::string near = nearest_word(word, names);
      throw UsageError(fmt::format("--arms: no arm '{}'{}; the arms are {}", word,
                                   near.empty() ? "" : " (did you mean '" + near + "'?)",
                                   fmt::join(names, ", ")));
    }
    if (is_chosen(word)) throw UsageError("--arms names " + word + " twice");
    chosen.push_back(*found);
  }
  if (!is_chosen("dense")) {
    log_info("dense is compared too: the others are measured by it");
    chosen.insert(chosen.begin(), all_arms().front());
  }
  if (is_chosen("dense_lr_scaled") && scale_source(chosen).empty())
    throw UsageError(
        "--arms: dense_lr_scaled takes its scale from a fused arm's runs: add one, best learned_free");
  return chosen;
}

std::string scale_source(const std::vector<Arm>& arms) {
  for (const char* name : {"learned_free", "learned", "memory", "memory_blend", "memory_routed", "static"}) {
    if (std::ranges::find(arms, name, &Arm::name) != arms.end()) return name;
  }
  return "";
}

}  // namespace exfusion
