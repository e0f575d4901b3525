#include "observe/topk_dynamics.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "analysis/draws.h"
#include "analysis/imbalance.h"
#include "analysis/quality.h"
#include "models/model.h"

namespace exfusion {
namespace {

using analysis::Quantity;
using analysis::TraceLayer;

constexpr std::size_t kPairTokens = 1024;
constexpr std::int64_t kCommonTokens = 1024;  // at most
constexpr std::uint32_t kSwappedTables = 20;
constexpr std::size_t kSwaps = 5;  // tries per assignment before each table

// Routes of tokens that are swapped one assignment at a time: loads of experts and choices of tokens stay.
struct Routes {
  std::vector<std::uint32_t> expert;  // [tokens, top_k]
  std::size_t top_k = 0, experts = 0;
};

bool chooses(const Routes& routes, std::size_t place, std::uint32_t expert) {
  const auto row = routes.expert.begin() + static_cast<std::ptrdiff_t>(place / routes.top_k * routes.top_k);
  return std::find(row, row + static_cast<std::ptrdiff_t>(routes.top_k), expert) !=
         row + static_cast<std::ptrdiff_t>(routes.top_k);
}

// Half the sum over pairs of abs(share of the pair - its share if pairs were as their loads' products).
double pair_distance(const Routes& routes) {
  const std::size_t experts = routes.experts, top_k = routes.top_k;
  std::vector<double> load(experts, 0.0), pair(experts * experts, 0.0);
  for (std::size_t first = 0; first < routes.expert.size(); first += top_k) {
    for (std::size_t k = 0; k < top_k; ++k) {
      const std::size_t e = routes.expert[first + k];
      load[e] += 1.0;
      for (std::size_t other = 0; other < k; ++other) {
        const std::size_t f = routes.expert[first + other];
        pair[std::min(e, f) * experts + std::max(e, f)] += 1.0;
      }
    }
  }
  const double pairs = std::reduce(pair.begin(), pair.end());
  double products = 0.0, distance = 0.0;
  for (std::size_t e = 0; e < experts; ++e)
    for (std::size_t f = e + 1; f < experts; ++f) products += load[e] * load[f];
  for (std::size_t e = 0; e < experts; ++e)
    for (std::size_t f = e + 1; f < experts; ++f)
      distance += std::abs(pair[e * experts + f] / pairs - load[e] * load[f] / products);
  return distance / 2.0;
}

analysis::NullComparison coactivation(const std::vector<std::uint32_t>& all, std::size_t top_k,
                                      std::size_t experts, std::uint32_t layer) {
  const auto none = [](const char* why) {
    const Quantity reason = analysis::undefined(why);
    return analysis::NullComparison{reason, reason, reason, reason};
  };
  if (top_k < 2) return none("a token selects a single expert");
  const std::size_t tokens = all.size() / top_k, stride = (tokens + kPairTokens - 1) / kPairTokens;
  Routes routes{{}, top_k, experts};
  for (std::size_t t = 0; t < tokens; t += stride) {
    const auto row = all.begin() + static_cast<std::ptrdiff_t>(t * top_k);
    routes.expert.insert(routes.expert.end(), row, row + static_cast<std::ptrdiff_t>(top_k));
  }
  if (routes.expert.empty()) return none("no token is sampled");
  const double measured = pair_distance(routes);
  std::vector<double> null;
  CounterRandom random = analysis::draw(analysis::Purpose::swapped_routes, 0, layer);
  const auto places = static_cast<std::uint32_t>(routes.expert.size());
  for (std::uint32_t r = 0; r < kSwappedTables; ++r) {
    for (std::size_t swap = 0; swap < kSwaps * places; ++swap) {
      const std::size_t one = random.below(places), other = random.below(places);
      const std::uint32_t e = routes.expert[one], f = routes.expert[other];
      if (chooses(routes, one, f) || chooses(routes, other, e)) continue;
      std::swap(routes.expert[one], routes.expert[other]);
    }
    null.push_back(pair_distance(routes));
  }
  return analysis::compare(measured, null);
}

Quantity overlap(const std::vector<std::uint32_t>& now, const std::vector<std::uint32_t>& earlier,
                 std::size_t top_k) {
  if (earlier.empty()) return analysis::undefined("no earlier observation");
  if (earlier.size() != now.size()) return analysis::undefined("the earlier observation is of other tokens");
  double kept = 0.0;
  for (std::size_t first = 0; first < now.size(); first += top_k) {
    const auto row = earlier.begin() + static_cast<std::ptrdiff_t>(first);
    const auto end = row + static_cast<std::ptrdiff_t>(top_k);
    for (std::size_t k = 0; k < top_k; ++k) kept += std::find(row, end, now[first + k]) != end ? 1.0 : 0.0;
  }
  return {kept / static_cast<double>(now.size()), ""};
}

// Cosines between rows of the stacked experts' two weight matrices, [M, M]; `offsets`: less the mean row.
std::vector<double> cosines(const FfnTensors& experts, bool offsets) {
  at::Tensor gram;
  for (const std::size_t t : {std::size_t{0}, std::size_t{2}}) {
    at::Tensor rows = experts[t].detach().to(at::kDouble).flatten(1);
    if (offsets) rows = rows - rows.mean(0, /*keepdim=*/true);
    const at::Tensor products = rows.mm(rows.t());
    gram = gram.defined() ? gram + products : products;
  }
  const at::Tensor norm = gram.diagonal().clamp_min(0.0).sqrt();
  const at::Tensor found = (gram / norm.outer(norm)).contiguous();
  return {found.const_data_ptr<double>(), found.const_data_ptr<double>() + found.numel()};
}

// sqrt(sum over tokens of mean_k norm(f_k - mean f)^2 / sum of norm(y)^2) on x [tokens, dim].
double functional_diversity(const TopkFfn& ffn, const at::Tensor& x) {
  const std::int64_t experts = ffn.config().experts;
  double spread = 0.0, size = 0.0;
  for (const at::Tensor& rows : x.split(256)) {
    const at::Tensor all = at::arange(experts, at::kLong).expand({rows.size(0), experts});
    const at::Tensor outputs = ffn.outputs(rows, all).to(at::kDouble);  // [rows, M, dim]
    spread += (outputs - outputs.mean(1, /*keepdim=*/true)).square().sum().item<double>();
    const TopkFfn::Routing routing = ffn.route(ffn.router_logits(rows));
    const at::Tensor places = routing.chosen.unsqueeze(-1).expand({-1, -1, outputs.size(2)});
    const at::Tensor y = (outputs.gather(1, places) * routing.gates.unsqueeze(-1)).sum(1);
    size += y.square().sum().item<double>();
  }
  return std::sqrt(spread / static_cast<double>(experts) / size);
}

}  // namespace

TopkDynamics topk_dynamics(const TopkObservation& of, std::size_t layer,
                           const std::vector<std::uint32_t>& earlier) {
  const TraceLayer& trace = of.trace.layers.at(layer);
  const TopkSums& sums = of.sums.at(layer);
  const std::size_t experts = of.trace.experts, top_k = of.trace.top_k;
  const std::vector<double> count = analysis::column_sums(trace.count, experts);
  const std::vector<double> probability = analysis::column_sums(trace.sum_prob, experts);
  const auto m = static_cast<double>(experts);
  const double slots = sums.tokens * static_cast<double>(top_k);
  TopkDynamics found;
  found.mean_entropy = sums.entropy / sums.tokens;
  for (std::size_t i = 0; i < experts; ++i) {
    const double p = probability[i] / sums.tokens;
    if (p > 0.0) found.entropy_of_mean -= p * std::log(p);
    found.balance_loss += m * count[i] / slots * p;
  }
  found.information = found.entropy_of_mean - found.mean_entropy;
  found.z_loss = sums.log_sum_exp_sq / sums.tokens;
  found.max_violation = analysis::imbalance(count).max_mean - 1.0;
  found.dead = analysis::dead_experts(count);
  found.logit_sd = analysis::quantity(analysis::sample_sigma(analysis::centre_sample(trace, experts), experts,
                                                             std::vector<double>(trace.batches(), 1.0)),
                                      "fewer than two sampled tokens");
  found.saturation = overlap(sums.routes, earlier, top_k);
  found.saturation_chance = static_cast<double>(top_k) / m;
  found.coactivation = coactivation(sums.routes, top_k, experts, static_cast<std::uint32_t>(trace.layer));
  return found;
}

std::vector<ExpertRedundancy> expert_redundancy(const Model& model, const analysis::Trace& trace) {
  const at::NoGradGuard no_grad;
  const std::vector<std::shared_ptr<Block>> blocks = find_blocks(model);
  std::vector<ExpertRedundancy> found;
  for (const TraceLayer& layer : trace.layers) {
    const auto ffn =
        std::dynamic_pointer_cast<TopkFfn>(blocks.at(static_cast<std::size_t>(layer.layer))->ffn());
    const auto sampled = static_cast<std::int64_t>(layer.sampled());
    if (sampled == 0) {
      found.emplace_back();
      continue;
    }
    const at::Tensor all = at::tensor(layer.hidden, at::kFloat).view({sampled, -1});
    const at::Tensor x =
        all.slice(0, 0, sampled, std::max<std::int64_t>(1, (sampled + kCommonTokens - 1) / kCommonTokens));
    found.push_back({functional_diversity(*ffn, x), cosines(ffn->experts().tensors, false),
                     cosines(ffn->experts().tensors, true)});
  }
  return found;
}

}  // namespace exfusion
