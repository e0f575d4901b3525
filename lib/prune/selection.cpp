#include "prune/selection.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "analysis/scores.h"
#include "core/error.h"

namespace exfusion {

std::int64_t kept_number(double keep, std::int64_t experts, std::int64_t top_k) {
  if (!(keep > 0.0 && keep <= 1.0))
    throw UsageError(fmt::format("--keep {}: must be above 0 and at most 1", keep));
  constexpr double kRounding = 1e-9;  // 0.1 of 10 experts is 1
  const auto number =
      static_cast<std::int64_t>(std::ceil(keep * static_cast<double>(experts) * (1.0 - kRounding)));
  if (number < top_k)
    throw UsageError(
        fmt::format("--keep {}: leaves {} of {} experts, but a token selects {}; give at least {}", keep,
                    number, experts, top_k, static_cast<double>(top_k) / static_cast<double>(experts)));
  return number;
}

void expect_scores_of(const ScoresByLayer& scores, const std::vector<std::int64_t>& layers,
                      std::int64_t experts, const std::string& source) {
  std::vector<std::int64_t> scored;
  for (const auto& [layer, values] : scores) scored.push_back(layer);
  if (scored != layers)
    throw FormatError(fmt::format("{}: scores layers {}, the model has experts in layers {}", source,
                                  fmt::join(scored, " "), fmt::join(layers, " ")));
  for (const auto& [layer, values] : scores) {
    if (static_cast<std::int64_t>(values.size()) != experts)
      throw FormatError(fmt::format("{}: scores {} experts in layer {}, the model has {}", source,
                                    values.size(), layer, experts));
  }
}

KeptExperts kept_experts(const ScoresByLayer& scores, std::int64_t number) {
  KeptExperts kept;
  for (const auto& [layer, values] : scores) {
    const std::vector<std::size_t> order = analysis::prune_order(values);
    std::vector<std::int64_t>& rest = kept[layer];
    rest.assign(order.end() - number, order.end());
    std::ranges::sort(rest);
  }
  return kept;
}

}  // namespace exfusion
