#include "compare/verdict.h"

#include <fmt/format.h>

namespace exfusion {

double corrected_level(std::size_t arms) {
  return kLevel / static_cast<double>(arms);
}

std::string verdict(const VerdictFacts& facts) {
  if (smallest_p(facts.seeds) > corrected_level(facts.arms))
    return fmt::format("cannot be decided with {} seeds", facts.seeds);
  if (facts.control && facts.to_dense.low > 0.0) return "differs from dense: higher";
  if (facts.control && facts.to_dense.high < 0.0) return "differs from dense: lower";
  if (!facts.control && facts.to_best_control.low > 0.0)
    return facts.tuned_alike ? "gain" : "no gain can be claimed: not tuned alike";
  if (!facts.control && facts.to_dense.high < 0.0) return "loss";
  const auto needed = seeds_needed(kSmallestEffect, facts.deviation);
  // What is above dense and not above the best control has the control's explanation.
  const bool above_dense = !facts.control && facts.to_dense.low > 0.0;
  return fmt::format("no difference shown{}, {} seeds would be needed for 0.3 points",
                     above_dense ? " to the best control (higher than dense)" : "",
                     needed ? std::to_string(*needed) : fmt::format("more than {}", kMostSeeds));
}

}  // namespace exfusion
