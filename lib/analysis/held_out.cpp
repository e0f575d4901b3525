#include "analysis/held_out.h"

#include <algorithm>
#include <numeric>

#include "analysis/congestion.h"
#include "analysis/quality.h"

namespace exfusion::analysis {

std::vector<double> raw_shares(const std::vector<double>& counts) {
  const double total = std::reduce(counts.begin(), counts.end());
  std::vector<double> shares = counts;
  for (double& share : shares) share /= total;
  return shares;
}

SearchRange gamma_range(const std::vector<double>& share) {
  return {-0.9 / std::ranges::max(share), 20.0 * static_cast<double>(share.size())};
}

HeldOutL1 held_out_l1(const TraceLayer& layer, std::size_t experts) {
  HeldOutL1 found;
  Quantity* const of_q[] = {&found.mfg, &found.softmax_t, &found.softmax_1};
  if (layer.batches() < 2 || layer.tokens.empty()) {
    const std::string why = layer.tokens.empty() ? "tokens are not in this trace" : "needs two batches";
    for (Quantity* one : of_q) *one = undefined(why);
    found.uniform = found.mean_prob = found.half_vs_half = undefined(why);
    return found;
  }
  const Resample halves = every_batch(layer.batches());
  const QualitySums even = sum_batches(layer, experts, halves.even);
  const std::vector<double> fitted_to = raw_shares(even.count);
  const std::vector<double> held_out = raw_shares(sum_batches(layer, experts, halves.odd).count);
  const auto l1 = [&](const std::vector<double>& predicted) {
    return Quantity{l1_distance(held_out, predicted), ""};
  };
  found.uniform = l1(std::vector<double>(experts, 1.0 / static_cast<double>(experts)));
  found.half_vs_half = l1(fitted_to);
  found.mean_prob =
      even.prob.empty() ? undefined("sum_prob is not in this trace") : l1(raw_shares(even.prob));
  const Qualities q = qualities(even, Quality::mean_logit);
  if (q.q.empty()) {
    for (Quantity* one : of_q) *one = undefined(q.reason);
    return found;
  }
  const SearchRange range = gamma_range(fitted_to);
  found.mfg = l1(fit_game_l1(q.q, fitted_to, range.low, range.high).shares);
  found.softmax_t = l1(fit_temperature_l1(q.q, fitted_to).shares);
  found.softmax_1 = l1(softmax(q.q));
  return found;
}

}  // namespace exfusion::analysis
