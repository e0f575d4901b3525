#include "analysis/congestion.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

namespace exfusion::analysis {
namespace {

constexpr double kEqualQualities = 1e-12;  // variance
constexpr int kSearchSteps = 200;
constexpr int kScanPoints = 200;
constexpr int kGoldenSteps = 50;  // to 1e-10 of the bracket
constexpr double kGolden = 0.6180339887498949;

double mean(std::span<const double> values) {
  return std::reduce(values.begin(), values.end()) / static_cast<double>(values.size());
}

double covariance(std::span<const double> a, std::span<const double> b) {
  const double mean_a = mean(a), mean_b = mean(b);
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += (a[i] - mean_a) * (b[i] - mean_b);
  return sum / static_cast<double>(a.size());
}

std::vector<double> log_gap(std::span<const double> q, std::span<const double> m) {
  std::vector<double> gap(q.size());
  for (std::size_t i = 0; i < q.size(); ++i) gap[i] = q[i] - std::log(m[i]);
  return gap;
}

// d/dgamma of the log likelihood per token, sum_i m_i dlog m*_i/dgamma; nullopt: no equilibrium.
std::optional<double> likelihood_slope(std::span<const double> q, std::span<const double> m, double gamma,
                                       Equilibrium& at) {
  if (!solve_game(q, gamma, at)) return std::nullopt;
  const std::vector<double> slope = log_share_slope(at.m, gamma);
  return std::inner_product(m.begin(), m.end(), slope.begin(), 0.0);
}

// A point and the slope there.
struct Probe {
  double gamma = 0.0, slope = 0.0;
};

// The root between two probes of opposite sign: regula falsi with the Illinois rule.
double refined_root(std::span<const double> q, std::span<const double> m, Probe left, Probe right,
                    Equilibrium& at) {
  int side = 0;
  for (int step = 0; step < kSearchSteps; ++step) {
    const double width = right.gamma - left.gamma;
    if (std::abs(width) <= 1e-10 * (1.0 + std::abs(left.gamma))) break;
    const double gamma = left.gamma + width * left.slope / (left.slope - right.slope);
    const std::optional<double> slope = likelihood_slope(q, m, gamma, at);
    if (!slope) break;
    if (*slope == 0.0) return gamma;
    if (*slope > 0.0) {
      if (std::abs(gamma - left.gamma) <= 1e-11 * (1.0 + std::abs(gamma))) return gamma;
      left = {gamma, *slope};
      if (side == 1) right.slope *= 0.5;
      side = 1;
    } else {
      if (std::abs(gamma - right.gamma) <= 1e-11 * (1.0 + std::abs(gamma))) return gamma;
      right = {gamma, *slope};
      if (side == -1) left.slope *= 0.5;
      side = -1;
    }
  }
  return 0.5 * (left.gamma + right.gamma);
}

}  // namespace

double scan_minimum(double low, double high, int points, const std::function<double(double)>& f) {
  const auto point = [&](int i) {
    const double part = static_cast<double>(std::clamp(i, 0, points)) / points;
    return low + (high - low) * part * part;
  };
  int best = -1;
  double least = INFINITY;
  for (int i = 0; i <= points; ++i) {
    const double value = f(point(i));
    if (value < least) {
      least = value;
      best = i;
    }
  }
  double a = point(best - 1), b = point(best + 1);
  for (int step = 0; step < kGoldenSteps; ++step) {
    const double inner = b - kGolden * (b - a), outer = a + kGolden * (b - a);
    if (f(inner) <= f(outer)) {
      b = outer;
    } else {
      a = inner;
    }
  }
  const double refined = 0.5 * (a + b);
  return f(refined) <= least ? refined : point(best);
}

std::vector<double> smoothed_shares(std::span<const double> counts) {
  const double total = std::reduce(counts.begin(), counts.end()) + 0.5 * static_cast<double>(counts.size());
  std::vector<double> shares(counts.size());
  for (std::size_t i = 0; i < counts.size(); ++i) shares[i] = (counts[i] + 0.5) / total;
  return shares;
}

std::optional<double> gamma_least_squares(std::span<const double> q, std::span<const double> m) {
  const double variance = covariance(m, m);
  if (!(variance > 0.0)) return std::nullopt;
  return covariance(log_gap(q, m), m) / variance;
}

std::optional<double> gamma_instrumental(std::span<const double> q, std::span<const double> a,
                                         std::span<const double> b) {
  const double together = covariance(a, b);
  if (!(together > 0.0)) return std::nullopt;
  return (covariance(log_gap(q, a), b) + covariance(log_gap(q, b), a)) / (2.0 * together);
}

Likelihood gamma_likelihood(std::span<const double> q, std::span<const double> m, Equilibrium& at,
                            double guess) {
  // At gamma -> infinity the load is uniform and leaves it in the direction of q: without a load that rises
  // with quality the likelihood grows for ever.
  if (covariance(q, q) < kEqualQualities || !(covariance(q, m) > 0.0)) return {};
  Probe here{guess, 0.0};
  std::optional<double> slope = likelihood_slope(q, m, guess, at);
  if (!slope) {
    at = {};
    here.gamma = 0.0;
    slope = likelihood_slope(q, m, 0.0, at);
    if (!slope) return {};
  }
  here.slope = *slope;
  if (here.slope == 0.0) return {here.gamma};
  const double direction = here.slope > 0.0 ? 1.0 : -1.0;
  double stride = std::max(static_cast<double>(q.size()) / 16.0, 0.02 * std::abs(here.gamma));
  const double shortest = 1e-6 * static_cast<double>(q.size());
  while (stride > shortest) {
    Equilibrium ahead = at;
    const double gamma = here.gamma + direction * stride;
    const std::optional<double> next = likelihood_slope(q, m, gamma, ahead);
    if (!next) {  // beyond the end of the branch, or too far for Newton
      stride *= 0.25;
      continue;
    }
    at = std::move(ahead);
    if (*next * direction <= 0.0) {
      const Probe there{gamma, *next};
      return {direction > 0.0 ? refined_root(q, m, here, there, at) : refined_root(q, m, there, here, at)};
    }
    here = {gamma, *next};
    if (here.gamma >= 0.0 || direction > 0.0) stride *= 2.0;
    if (stride > 1e12) return {};
  }
  return {std::nullopt, direction < 0.0};
}

Gamma estimate_gamma(std::span<const double> q, std::span<const double> m, std::span<const double> half_a,
                     std::span<const double> half_b, Equilibrium& at, double guess) {
  const Likelihood likelihood = gamma_likelihood(q, m, at, guess);
  if (likelihood.value) return {likelihood.value, "E3", ""};
  if (!likelihood.below) {
    return {std::nullopt, "",
            covariance(q, q) < kEqualQualities ? "the experts' qualities do not differ"
                                               : "the load does not rise with quality: no finite estimate"};
  }
  if (half_a.empty()) return {std::nullopt, "", "below the range of E3, and E1' needs two batches"};
  const std::optional<double> value = gamma_instrumental(q, half_a, half_b);
  if (!value) return {std::nullopt, "", "below the range of E3, and the loads of the two halves disagree"};
  return {value, "E1'", ""};
}

std::optional<double> fitted_temperature(std::span<const double> q, std::span<const double> m) {
  if (covariance(q, q) < kEqualQualities || !(covariance(q, m) > 0.0)) return std::nullopt;
  const double target = std::inner_product(q.begin(), q.end(), m.begin(), 0.0);
  const auto quality_at = [&](double inverse) {
    const std::vector<double> shares = softmax(q, 1.0 / inverse);
    return std::inner_product(q.begin(), q.end(), shares.begin(), 0.0);
  };
  double low = 0.0, high = 1.0;
  while (quality_at(high) < target && high < 1e12) high *= 2.0;
  for (int step = 0; step < 100; ++step) {
    const double middle = 0.5 * (low + high);
    (quality_at(middle) < target ? low : high) = middle;
  }
  return 2.0 / (low + high);
}

ShareFit fit_game_l1(std::span<const double> q, std::span<const double> m, double low, double high) {
  const auto distance = [&](double gamma) {
    const auto shares = equilibrium_shares(q, gamma);
    return shares ? l1_distance(*shares, m) : std::nan("");
  };
  const double gamma = scan_minimum(low, high, kScanPoints, distance);
  return {gamma, distance(gamma), *equilibrium_shares(q, gamma)};
}

ShareFit fit_temperature_l1(std::span<const double> q, std::span<const double> m) {
  const auto distance = [&](double log_t) { return l1_distance(softmax(q, std::exp(log_t)), m); };
  const double log_t = scan_minimum(std::log(0.02), std::log(200.0), kScanPoints, distance);
  return {std::exp(log_t), distance(log_t), softmax(q, std::exp(log_t))};
}

double explicit_price(double coefficient, double experts, double top_k) {
  return coefficient * experts * top_k;
}

std::optional<double> selection_bias_price(std::span<const double> bias, std::span<const double> m) {
  const double variance = covariance(m, m);
  if (!(variance > 0.0)) return std::nullopt;
  return -covariance(bias, m) / variance;
}

}  // namespace exfusion::analysis
