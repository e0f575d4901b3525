// The logit congestion game of one layer: m_i proportional to exp(q_i - gamma m_i), sum m = 1, with the load
// shares m of M experts, their qualities q in log-probability units and the price slope gamma. Reconstructed
// from the abstract of Mouzouni, "Three Phases of Expert Routing" (arXiv 2604.04230), whose body was not
// available: none of these numbers is that paper's. Formulas: docs/metrics.md.
#pragma once
#include <optional>
#include <span>
#include <vector>

namespace exfusion::analysis {

// An equilibrium: x_i = log m_i and the constant c of x_i + gamma m_i = q_i + c. Also a start for the next
// solution near it; empty x: no start.
struct Equilibrium {
  std::vector<double> x, m;
  double c = 0.0;
};

// Solves for x and c together by Newton steps, from `at` if it holds M values. Unique for gamma >= 0; below,
// the branch that continues gamma = 0, which ends where 1 + gamma max(m) = 0. False, with `at` undefined, if
// there is none.
bool solve_game(std::span<const double> q, double gamma, Equilibrium& at);

// The shares m, or nullopt where solve_game is false.
std::optional<std::vector<double>> equilibrium_shares(std::span<const double> q, double gamma);

// dlog m_i/dgamma = (A/B - m_i) / (1 + gamma m_i) at an equilibrium m, with A = sum m^2/(1 + gamma m) and
// B = sum m/(1 + gamma m).
std::vector<double> log_share_slope(std::span<const double> m, double gamma);

// max_i U_i - sum m_i U_i with U_i = q_i - gamma m_i - log m_i: what the best deviation gains; 0 at the
// equilibrium. m > 0.
double nash_gap(std::span<const double> q, std::span<const double> m, double gamma);

// softmax(q / temperature).
std::vector<double> softmax(std::span<const double> q, double temperature = 1.0);

// Several types of tokens: m_t = softmax(q_t - gamma A), A = sum_t w_t m_t, gamma >= 0. `q` is
// [types, experts], `weight` sums to 1. Returns A.
std::vector<double> multi_type_shares(std::span<const double> q, std::span<const double> weight,
                                      double gamma);

double l1_distance(std::span<const double> a, std::span<const double> b);

}  // namespace exfusion::analysis
