#include "analysis/layer_congestion.h"

#include <algorithm>
#include <cmath>

#include "analysis/congestion.h"
#include "analysis/null.h"
#include "analysis/probe.h"
#include "analysis/quality.h"

namespace exfusion::analysis {
namespace {

constexpr std::int64_t kSimulatedLogits = std::int64_t{1} << 20;
constexpr std::int64_t kFewestTokens = 2048, kMostTokens = 32768;
constexpr std::size_t kHeadline = 1;  // Q2, in kQualities

// What estimates of a layer start from.
struct Loads {
  QualitySums sums;
  std::vector<double> share, even, odd;  // smoothed; the halves are empty with a single batch
};

Loads pooled_loads(const TraceLayer& layer, std::size_t experts, const Resample& times) {
  Loads loads{sum_batches(layer, experts, times.all)};
  loads.share = smoothed_shares(loads.sums.count);
  if (layer.batches() < 2) return loads;
  loads.even = smoothed_shares(sum_batches(layer, experts, times.even).count);
  loads.odd = smoothed_shares(sum_batches(layer, experts, times.odd).count);
  return loads;
}

// The null router of the layer and what it shows under each quality.
struct Null {
  GaussianRouter router;
  RouterAverages averages;
  std::array<Quantity, 4> gamma;
  bool below = false;  // Q2's by E1'
  double slots = 0.0;  // tokens * K
};

std::vector<double> null_quality(const Null& null, const Loads& loads, Quality which) {
  std::vector<double> q = null.router.bias;
  if (which == Quality::mean_logit) return q;
  for (std::size_t i = 0; i < q.size(); ++i) {
    if (which == Quality::mean_prob) q[i] = std::log(null.averages.mean_prob[i]);
    if (which == Quality::gate_selected) q[i] = std::log(null.averages.gate_selected[i]);
    // Norms stay as measured: the null is about routing.
    if (which == Quality::gate_norm)
      q[i] = std::log(null.averages.gate_selected[i] * loads.sums.gate_norm[i] / loads.sums.gate[i]);
  }
  return q;
}

void fill_null(Null& null, const Loads& loads, std::uint32_t layer) {
  const auto experts = static_cast<std::int64_t>(null.router.bias.size());
  null.averages =
      simulate_router(null.router, std::clamp(kSimulatedLogits / experts, kFewestTokens, kMostTokens), layer);
  for (std::size_t i = 0; i < 4; ++i) {
    if (const Qualities measured = qualities(loads.sums, kQualities[i]); measured.q.empty()) {
      null.gamma[i] = undefined(measured.reason);
      continue;
    }
    if (kQualities[i] == Quality::gate_norm && loads.sums.gate.empty()) {
      null.gamma[i] = undefined("sum_gate is not in this trace");
      continue;
    }
    const std::vector<double> q = null_quality(null, loads, kQualities[i]);
    if (std::ranges::any_of(q, [](double one) { return !std::isfinite(one); })) {
      null.gamma[i] = undefined("the null router never selects one of the experts");
      continue;
    }
    const auto gamma = null_gamma(q, null.averages.share, null.router.top_k, loads.sums.tokens, layer);
    null.gamma[i] = quantity(gamma ? std::optional(gamma->value) : std::nullopt,
                             "the null router's load does not rise with this quality");
    if (i == kHeadline && gamma) null.below = gamma->below;
  }
}

// How the null moves with bias and sigma: the estimate on the smooth shares of a fixed threshold.
std::optional<double> smooth_null(const Null& null, const std::vector<double>& bias, double sigma,
                                  Equilibrium& at, double guess) {
  std::vector<double> counts = fixed_threshold_shares(bias, sigma, null.router.top_k);
  for (double& one : counts) one *= null.slots;
  const std::vector<double> share = smoothed_shares(counts);
  if (null.below) return gamma_least_squares(bias, share);
  return gamma_likelihood(bias, share, at, guess).value;
}

// gamma_eff and gamma_excess under each resample; infinite where there is no estimate.
void resample(const TraceLayer& layer, std::size_t experts, const Null* null, const CentredSample& sample,
              LayerCongestion& found) {
  TraceLayer headline;  // nothing else needs summing a thousand times
  headline.tokens = layer.tokens;
  headline.count = layer.count;
  headline.sum_logit = layer.sum_logit;
  headline.sum_logit_sq = layer.sum_logit_sq;
  Equilibrium at, null_at;
  const std::vector<double>* bias = null ? &null->router.bias : nullptr;
  const double centre =
      null ? smooth_null(*null, *bias, null->router.sigma, null_at, found.gamma_null.value).value_or(NAN)
           : NAN;
  for (std::uint32_t r = 0; r < kResamples; ++r) {
    const Resample times = resample_batches(layer.batches(), r);
    const Loads loads = pooled_loads(headline, experts, times);
    const Qualities q = qualities(loads.sums, Quality::mean_logit);
    const Gamma gamma = estimate_gamma(q.q, loads.share, loads.even, loads.odd, at, found.gamma_eff.value);
    if (!gamma.value) at = {};
    found.resampled_gamma.push_back(gamma.value.value_or(INFINITY));
    if (!null) continue;
    const std::optional<double> drawn =
        found.sigma_uncentred ? uncentred_sigma(loads.sums) : sample_sigma(sample, experts, times.all);
    const double sigma = drawn && *drawn > 0.0 ? *drawn : null->router.sigma;
    const std::optional<double> moved =
        smooth_null(*null, q.q, sigma, null_at, std::isfinite(centre) ? centre : 0.0);
    if (!moved) null_at = {};
    found.resampled_excess.push_back(
        gamma.value && moved ? *gamma.value - (found.gamma_null.value + *moved - centre) : INFINITY);
  }
}

void fill_sigma(const TraceLayer& layer, std::size_t experts, const Loads& loads, const CentredSample& sample,
                LayerCongestion& found) {
  std::optional<double> sigma = sample_sigma(sample, experts, every_batch(layer.batches()).all);
  if (!sigma) {
    sigma = uncentred_sigma(loads.sums);
    found.sigma_uncentred = sigma.has_value();
  }
  found.sigma = quantity(sigma, "neither a sample of logits nor sum_logit_sq is in this trace");
}

void fill_explicit(const Trace& trace, const TraceLayer& layer, const Loads& loads, ExplicitPart& part) {
  const double experts = static_cast<double>(trace.experts), top_k = static_cast<double>(trace.top_k);
  part.aux_share_sums_to_1 = part.aux_share_sums_to_k = undefined("aux_loss_coef is not in this trace");
  if (trace.aux_loss_coef) {
    part.aux_share_sums_to_1 = {explicit_price(*trace.aux_loss_coef, experts), ""};
    part.aux_share_sums_to_k = {explicit_price(*trace.aux_loss_coef, experts, top_k), ""};
  }
  part.selection_bias = undefined("selection_bias is not in this trace");
  if (!layer.selection_bias.empty())
    part.selection_bias =
        quantity(selection_bias_price(layer.selection_bias, loads.share), "all loads are equal");
}

void fill_estimates(const Loads& loads, LayerCongestion& found) {
  for (std::size_t i = 0; i < 4; ++i) {
    const Qualities quality = qualities(loads.sums, kQualities[i]);
    if (quality.q.empty()) {
      found.gamma_by_quality[i] = undefined(quality.reason);
      continue;
    }
    Equilibrium at;
    const Gamma gamma = estimate_gamma(quality.q, loads.share, loads.even, loads.odd, at);
    found.gamma_by_quality[i] = quantity(gamma.value, gamma.reason);
    if (i == kHeadline) found.gamma_estimator = gamma.estimator;
  }
  found.gamma_eff = found.gamma_by_quality[kHeadline];
  const Qualities q = qualities(loads.sums, Quality::mean_logit);
  if (q.q.empty()) {
    for (Quantity* one :
         {&found.gamma_iv, &found.temperature, &found.sigma_bias, &found.epsilon_l1, &found.epsilon_nash})
      *one = undefined(q.reason);
    return;
  }
  found.gamma_iv = loads.even.empty() ? undefined("E1' needs two batches")
                                      : quantity(gamma_instrumental(q.q, loads.even, loads.odd),
                                                 "the loads of the two halves do not rise together");
  found.temperature = quantity(fitted_temperature(q.q, loads.share), "the load does not rise with quality");
  double mean = 0.0, squares = 0.0;
  for (const double one : q.q) mean += one / static_cast<double>(q.q.size());
  for (const double one : q.q) squares += (one - mean) * (one - mean);
  found.sigma_bias = {std::sqrt(squares / static_cast<double>(q.q.size())), ""};
  const auto [least, most] = std::ranges::minmax(q.q);
  found.quality_range = {most - least, ""};
  found.softmax_max_mean = {static_cast<double>(q.q.size()) * std::ranges::max(softmax(q.q)), ""};
  const Quantity& gamma = found.gamma_eff;
  const auto expected = gamma.defined() ? equilibrium_shares(q.q, gamma.value) : std::nullopt;
  found.epsilon_l1 = quantity(expected ? std::optional(l1_distance(loads.share, *expected)) : std::nullopt,
                              gamma.defined() ? "no equilibrium at gamma_eff" : gamma.reason);
  found.epsilon_nash = gamma.defined() ? Quantity{nash_gap(q.q, loads.share, gamma.value), ""} : gamma;
}

}  // namespace

LayerCongestion analyse_congestion(const Trace& trace, const TraceLayer& layer, bool intervals) {
  const std::size_t experts = trace.experts;
  const auto number = static_cast<std::uint32_t>(layer.layer);
  LayerCongestion found;
  found.batches = layer.batches();
  const Loads loads = pooled_loads(layer, experts, every_batch(layer.batches()));
  const CentredSample sample = centre_sample(layer, experts);
  fill_estimates(loads, found);
  fill_sigma(layer, experts, loads, sample, found);
  fill_explicit(trace, layer, loads, found.explicit_part);
  found.gamma_probe = quantity(probe_gamma(layer, experts, trace.top_k, trace.scores),
                               layer.logits.empty()     ? "a sample of logits is not in this trace"
                               : trace.top_k >= experts ? "every token selects every expert"
                                                        : "too few experts react to the probe");
  std::string why;
  if (loads.sums.logit.empty()) why = "sum_logit is not in this trace";
  if (!found.sigma.defined()) why = found.sigma.reason;
  if (found.sigma.defined() && !(found.sigma.value > 0.0)) why = "logits do not differ between tokens";
  if (trace.top_k >= experts) why = "top_k is not below the number of experts";
  std::optional<Null> null;
  if (why.empty()) {
    null = Null{{qualities(loads.sums, Quality::mean_logit).q, found.sigma.value, trace.top_k, trace.scores,
                 gates_renormalised(layer, experts)}};
    null->slots = loads.sums.tokens * static_cast<double>(trace.top_k);
    fill_null(*null, loads, number);
    found.null_by_quality = null->gamma;
    found.gamma_null_closed_form = {
        gaussian_null(static_cast<double>(experts), static_cast<double>(trace.top_k), found.sigma.value)
            .gamma,
        ""};
  } else {
    found.null_by_quality.fill(undefined(why));
    found.gamma_null_closed_form = undefined(why);
  }
  found.gamma_null = found.null_by_quality[kHeadline];
  if (!found.gamma_null.defined()) null.reset();
  const std::string no_excess = !found.gamma_eff.defined() ? found.gamma_eff.reason : found.gamma_null.reason;
  found.gamma_excess =
      no_excess.empty() ? Quantity{found.gamma_eff.value - found.gamma_null.value, ""} : undefined(no_excess);
  std::string few = layer.batches() < kFewestBatches ? "intervals need at least 4 batches" : "";
  if (!intervals) few = "not asked for";
  if (found.gamma_eff.defined() && few.empty())
    resample(layer, experts, null ? &*null : nullptr, sample, found);
  found.gamma_ci = found.gamma_eff.defined() && few.empty()
                       ? percentile_interval(found.resampled_gamma, expanded_tail(layer.batches()))
                       : Interval{0.0, 0.0, few.empty() ? found.gamma_eff.reason : few};
  found.gamma_excess_ci = no_excess.empty() && few.empty()
                              ? percentile_interval(found.resampled_excess, expanded_tail(layer.batches()))
                              : Interval{0.0, 0.0, few.empty() ? no_excess : few};
  return found;
}

}  // namespace exfusion::analysis
