#include "analysis/null.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>
#include <numeric>

#include "analysis/congestion.h"
#include "analysis/draws.h"

namespace exfusion::analysis {
namespace {

constexpr int kPairs = 16;  // of sampled loads
constexpr double kFewCounts = 30.0;

double upper_tail(double x) {
  return 0.5 * std::erfc(x * std::numbers::sqrt2 * 0.5);
}
double density(double x) {
  return std::exp(-0.5 * x * x) / std::sqrt(2.0 * std::numbers::pi);
}

// The root of a falling function in [low, high], by halving.
double falling_root(double low, double high, const std::function<double(double)>& f) {
  for (int step = 0; step < 100; ++step) {
    const double middle = 0.5 * (low + high);
    (f(middle) > 0.0 ? low : high) = middle;
  }
  return 0.5 * (low + high);
}

// The router's scores of one token's logits: softmax, or sigmoid divided by its sum.
void scores_of(const std::vector<double>& z, RouterScores kind, std::vector<double>& p) {
  const double top = kind == RouterScores::softmax ? *std::ranges::max_element(z) : 0.0;
  double total = 0.0;
  for (std::size_t i = 0; i < z.size(); ++i) {
    p[i] = kind == RouterScores::softmax ? std::exp(z[i] - top) : 1.0 / (1.0 + std::exp(-z[i]));
    total += p[i];
  }
  for (double& one : p) one /= total;
}

// The smallest n whose Poisson distribution function reaches u.
double poisson_quantile(double mean, double u) {
  double n = 0.0, p = std::exp(-mean), below = p;
  while (below < u && n < 1000.0) {
    n += 1.0;
    p *= mean / n;
    below += p;
  }
  return n;
}

// Counts of `tokens` tokens that select with probability top_k * share, one normal draw each: Poisson where
// few are expected, otherwise normal with the binomial variance.
std::vector<double> sampled_counts(std::span<const double> share, std::size_t top_k, double tokens,
                                   const std::vector<double>& noise, double sign) {
  std::vector<double> counts(share.size());
  for (std::size_t i = 0; i < share.size(); ++i) {
    const double selected = std::min(static_cast<double>(top_k) * share[i], 1.0);
    const double mean = tokens * selected;
    counts[i] = mean < kFewCounts
                    ? poisson_quantile(mean, upper_tail(-sign * noise[i]))
                    : std::max(mean + sign * noise[i] * std::sqrt(mean * (1.0 - selected)), 0.0);
  }
  return counts;
}

}  // namespace

GaussianNull gaussian_null(double experts, double top_k, double sigma) {
  const double tail = top_k / experts;
  GaussianNull null;
  null.tau = falling_root(-40.0, 40.0, [&](double x) { return upper_tail(x) - tail; });
  null.hazard = density(null.tau) / tail;
  null.temperature = sigma / null.hazard;
  null.gamma = experts * (null.temperature - 1.0);
  return null;
}

RouterAverages simulate_router(const GaussianRouter& router, std::int64_t tokens, std::uint32_t layer) {
  const std::size_t experts = router.bias.size(), top_k = router.top_k;
  RouterAverages found{std::vector<double>(experts, 0.0), std::vector<double>(experts, 0.0),
                       std::vector<double>(experts, 0.0)};
  std::vector<double> z(experts), p(experts), order(experts), selected(experts, 0.0);
  CounterRandom random = draw(Purpose::router_null, 0, layer);
  for (std::int64_t token = 0; token < tokens; ++token) {
    for (std::size_t i = 0; i < experts; ++i) z[i] = router.bias[i] + router.sigma * random.normal();
    scores_of(z, router.scores, p);
    order = z;
    const auto kth = order.begin() + static_cast<std::ptrdiff_t>(top_k) - 1;
    std::nth_element(order.begin(), kth, order.end(), std::greater<>());
    const double last_in = *kth, first_out = *std::max_element(kth + 1, order.end());
    double gates = 0.0;
    for (std::size_t i = 0; i < experts; ++i) gates += z[i] >= last_in ? p[i] : 0.0;
    for (std::size_t i = 0; i < experts; ++i) {
      found.mean_prob[i] += p[i];
      // Whoever is in would be in above the first who is out, and the other way round.
      const bool in = z[i] >= last_in;
      found.share[i] += upper_tail(((in ? first_out : last_in) - router.bias[i]) / router.sigma);
      if (!in) continue;
      found.gate_selected[i] += router.renormalised ? p[i] / gates : p[i];
      selected[i] += 1.0;
    }
  }
  const double slots = std::reduce(found.share.begin(), found.share.end());
  for (std::size_t i = 0; i < experts; ++i) {
    found.share[i] /= slots;
    found.mean_prob[i] /= static_cast<double>(tokens);
    found.gate_selected[i] /= selected[i];  // NaN for an expert that is never selected
  }
  return found;
}

std::vector<double> fixed_threshold_shares(std::span<const double> bias, double sigma, std::size_t top_k) {
  const auto [least, most] = std::ranges::minmax(bias);
  const double threshold = falling_root(least - 40.0 * sigma, most + 40.0 * sigma, [&](double x) {
    double in = 0.0;
    for (const double b : bias) in += upper_tail((x - b) / sigma);
    return in - static_cast<double>(top_k);
  });
  std::vector<double> share(bias.size());
  for (std::size_t i = 0; i < bias.size(); ++i) share[i] = upper_tail((threshold - bias[i]) / sigma);
  const double total = std::reduce(share.begin(), share.end());
  for (double& one : share) one = std::max(one / total, 1e-12);
  return share;
}

std::optional<NullGamma> null_gamma(std::span<const double> q, std::span<const double> share,
                                    std::size_t top_k, double tokens, std::uint32_t layer) {
  Equilibrium at;
  const Likelihood expected = gamma_likelihood(q, share, at);
  if (!expected.value && !expected.below) return std::nullopt;
  const double guess = expected.value.value_or(0.0);
  double sum = 0.0;
  std::vector<double> noise_a(q.size()), noise_b(q.size());
  for (int pair = 0; pair < kPairs; ++pair) {
    CounterRandom random = draw(Purpose::load_noise, static_cast<std::uint32_t>(pair), layer);
    for (std::size_t i = 0; i < q.size(); ++i) {
      noise_a[i] = random.normal();
      noise_b[i] = random.normal();
    }
    for (const double sign : {1.0, -1.0}) {
      const std::vector<double> a = sampled_counts(share, top_k, 0.5 * tokens, noise_a, sign);
      const std::vector<double> b = sampled_counts(share, top_k, 0.5 * tokens, noise_b, sign);
      std::optional<double> one;
      if (expected.below) {
        one = gamma_instrumental(q, smoothed_shares(a), smoothed_shares(b));
      } else {
        std::vector<double> counts(q.size());
        std::ranges::transform(a, b, counts.begin(), std::plus<>());
        one = gamma_likelihood(q, smoothed_shares(counts), at, guess).value;
      }
      // Too few tokens to say what their noise adds.
      if (!one) return expected.value ? std::optional(NullGamma{*expected.value, false}) : std::nullopt;
      sum += *one;
    }
  }
  return NullGamma{sum / (2.0 * kPairs), expected.below};
}

bool gates_renormalised(const TraceLayer& layer, std::size_t experts) {
  double least = INFINITY, most = 0.0;
  for (std::size_t b = 0; b < layer.batches() && !layer.sum_gate.empty(); ++b) {
    const auto row = layer.sum_gate.begin() + static_cast<std::ptrdiff_t>(b * experts);
    const double mean = std::reduce(row, row + static_cast<std::ptrdiff_t>(experts)) / layer.tokens[b];
    least = std::min(least, mean);
    most = std::max(most, mean);
  }
  return most - least <= 1e-4 * most && layer.batches() > 1;
}

}  // namespace exfusion::analysis
