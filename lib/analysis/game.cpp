#include "analysis/game.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace exfusion::analysis {
namespace {

constexpr int kNewtonSteps = 200;
constexpr double kSettled = 1e-9;  // Newton converges quadratically: after such a step nothing is left
constexpr double kLongestRise = 2.0;
constexpr double kStability = 1e-3;  // 1 + gamma max(m) near 0: the branch ends
constexpr double kTypesSettled = 1e-13;
constexpr int kTypesSteps = 100000;

void start(std::span<const double> q, double gamma, Equilibrium& at) {
  const double experts = static_cast<double>(q.size());
  const double temperature = 1.0 + std::max(gamma, 0.0) / experts;  // the first-order solution
  const std::size_t top = static_cast<std::size_t>(std::ranges::max_element(q) - q.begin());
  double total = 0.0;
  for (const double one : q) total += std::exp((one - q[top]) / temperature);
  at.x.resize(q.size());
  for (std::size_t i = 0; i < q.size(); ++i) at.x[i] = (q[i] - q[top]) / temperature - std::log(total);
  at.c = at.x[top] + gamma * std::exp(at.x[top]) - q[top];
}

}  // namespace

bool solve_game(std::span<const double> q, double gamma, Equilibrium& at) {
  if (at.x.size() != q.size()) start(q, gamma, at);
  at.m.resize(q.size());
  for (int step = 0; step < kNewtonSteps; ++step) {
    double total = 0.0, slope = 0.0, residual = 0.0, smallest = 1.0;
    for (std::size_t i = 0; i < q.size(); ++i) {
      const double m = at.m[i] = std::exp(at.x[i]);
      const double stiffness = 1.0 + gamma * m;
      smallest = std::min(smallest, stiffness);
      total += m;
      slope += m / stiffness;
      residual += m * (at.c + q[i] - at.x[i] - gamma * m) / stiffness;
    }
    if (!(smallest > kStability)) return false;
    const double dc = (1.0 - total - residual) / slope;
    double longest = 0.0;
    for (std::size_t i = 0; i < q.size(); ++i) {
      const double m = at.m[i];
      const double dx = (at.c + q[i] - at.x[i] - gamma * m + dc) / (1.0 + gamma * m);
      longest = std::max(longest, std::abs(dx));
      at.x[i] += std::min(dx, kLongestRise);  // x + gamma exp(x) is convex: only rises overshoot
    }
    at.c += dc;
    if (!std::isfinite(longest)) return false;
    if (longest < kSettled) {
      for (std::size_t i = 0; i < q.size(); ++i) at.m[i] = std::exp(at.x[i]);
      return true;
    }
  }
  return false;
}

std::optional<std::vector<double>> equilibrium_shares(std::span<const double> q, double gamma) {
  Equilibrium at;
  if (!solve_game(q, gamma, at)) return std::nullopt;
  return at.m;
}

std::vector<double> log_share_slope(std::span<const double> m, double gamma) {
  double a = 0.0, b = 0.0;
  for (const double one : m) {
    a += one * one / (1.0 + gamma * one);
    b += one / (1.0 + gamma * one);
  }
  std::vector<double> slope(m.size());
  for (std::size_t i = 0; i < m.size(); ++i) slope[i] = (a / b - m[i]) / (1.0 + gamma * m[i]);
  return slope;
}

double nash_gap(std::span<const double> q, std::span<const double> m, double gamma) {
  double best = -INFINITY, mean = 0.0;
  for (std::size_t i = 0; i < q.size(); ++i) {
    const double payoff = q[i] - gamma * m[i] - std::log(m[i]);
    best = std::max(best, payoff);
    mean += m[i] * payoff;
  }
  return best - mean;
}

std::vector<double> softmax(std::span<const double> q, double temperature) {
  const double top = *std::ranges::max_element(q);
  std::vector<double> m(q.size());
  for (std::size_t i = 0; i < q.size(); ++i) m[i] = std::exp((q[i] - top) / temperature);
  const double total = std::reduce(m.begin(), m.end());
  for (double& one : m) one /= total;
  return m;
}

std::vector<double> multi_type_shares(std::span<const double> q, std::span<const double> weight,
                                      double gamma) {
  const std::size_t experts = q.size() / weight.size();
  std::vector<double> shares(experts, 1.0 / static_cast<double>(experts)), payoff(experts), next(experts);
  for (int step = 0; step < kTypesSteps; ++step) {
    std::ranges::fill(next, 0.0);
    for (std::size_t type = 0; type < weight.size(); ++type) {
      for (std::size_t i = 0; i < experts; ++i) payoff[i] = q[type * experts + i] - gamma * shares[i];
      const std::vector<double> m = softmax(payoff);
      for (std::size_t i = 0; i < experts; ++i) next[i] += weight[type] * m[i];
    }
    const double rate = 1.0 / (1.0 + gamma * *std::ranges::max_element(shares));
    double moved = 0.0;
    for (std::size_t i = 0; i < experts; ++i) {
      moved += std::abs(rate * (next[i] - shares[i]));
      shares[i] += rate * (next[i] - shares[i]);
    }
    if (moved < kTypesSettled) break;
  }
  return shares;
}

double l1_distance(std::span<const double> a, std::span<const double> b) {
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::abs(a[i] - b[i]);
  return sum;
}

}  // namespace exfusion::analysis
