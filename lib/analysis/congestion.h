// Estimators of gamma, the slope of the price that an expert's load puts on it, from measured load shares and
// qualities of the experts of one layer (reconstructed: analysis/game.h). q: qualities, m: shares that sum
// to 1, all > 0.
#pragma once
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "analysis/game.h"

namespace exfusion::analysis {

// (n_i + 1/2) / (sum n + M/2): shares of counts, none of them 0.
std::vector<double> smoothed_shares(std::span<const double> counts);

// E1, least squares: Cov(q - log m, m) / Var(m). Noise in m pulls it down. nullopt when all m are equal.
std::optional<double> gamma_least_squares(std::span<const double> q, std::span<const double> m);

// E1', two independent halves as instruments for each other:
// [Cov(q - log a, b) + Cov(q - log b, a)] / (2 Cov(a, b)). nullopt when the halves do not rise together.
std::optional<double> gamma_instrumental(std::span<const double> q, std::span<const double> a,
                                         std::span<const double> b);

// E3, maximum likelihood: the root of sum_i m_i dlog m*_i/dgamma. `value` is missing where there is none:
// `below` says that it would lie below the branch of equilibria (gamma > -1 / max m*); otherwise qualities
// are all equal or the load does not rise with quality, and the likelihood has no finite maximum. `at` is
// where the search starts, and its end: hand it on to a similar problem.
struct Likelihood {
  std::optional<double> value;
  bool below = false;
};
Likelihood gamma_likelihood(std::span<const double> q, std::span<const double> m, Equilibrium& at,
                            double guess = 0.0);

// The headline estimate: E3, or E1' of the halves (if given) where E3 lies below its branch.
struct Gamma {
  std::optional<double> value;
  std::string estimator;  // "E3", "E1'", "": why not
  std::string reason;
};
Gamma estimate_gamma(std::span<const double> q, std::span<const double> m, std::span<const double> half_a,
                     std::span<const double> half_b, Equilibrium& at, double guess = 0.0);

// The T for which softmax(q / T) has the mean quality of the load, which minimises KL(m || softmax(q / T)).
// nullopt when the load does not rise with quality.
std::optional<double> fitted_temperature(std::span<const double> q, std::span<const double> m);

// Minima of the L1 distance to m, over equilibria (E2) and over softmax(q / T): a scan, then golden section.
struct ShareFit {
  double parameter = 0.0;  // gamma or T
  double l1 = 0.0;
  std::vector<double> shares;
};
ShareFit fit_game_l1(std::span<const double> q, std::span<const double> m, double low, double high);
ShareFit fit_temperature_l1(std::span<const double> q, std::span<const double> m);

// Where f is smallest in [low, high]: a scan whose points are densest at `low`, then golden section between
// the neighbours of the best. f is NaN where it is undefined, and defined somewhere.
double scan_minimum(double low, double high, int points, const std::function<double(double)>& f);

// What a Switch-type loss coef * M * sum f_i P_i puts on the router: coef * M for f that sum to 1, coef * M *
// K for f that sum to K. Nats of loss taken as logits: an assumption.
double explicit_price(double coefficient, double experts, double top_k = 1.0);

// Slope of -bias_i on m_i: the price that a selection bias puts on load. nullopt when all m are equal.
std::optional<double> selection_bias_price(std::span<const double> bias, std::span<const double> m);

}  // namespace exfusion::analysis
