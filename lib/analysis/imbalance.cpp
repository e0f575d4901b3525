#include "analysis/imbalance.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <vector>

namespace exfusion::analysis {

Imbalance imbalance(std::span<const double> counts) {
  std::vector<double> sorted(counts.begin(), counts.end());
  std::ranges::sort(sorted);
  const double experts = static_cast<double>(sorted.size());
  const double total = std::reduce(sorted.begin(), sorted.end());
  const double mean = total / experts;
  Imbalance found{sorted.back() / mean, sorted.front() / mean};
  double squares = 0.0, shares_squared = 0.0, ranked = 0.0;
  for (std::size_t i = 0; i < sorted.size(); ++i) {
    squares += (sorted[i] - mean) * (sorted[i] - mean);
    shares_squared += sorted[i] / total * (sorted[i] / total);
    ranked += (2.0 * static_cast<double>(i + 1) - experts - 1.0) * sorted[i];
  }
  found.cv = std::sqrt(squares / experts) / mean;
  found.gini = ranked / (experts * total);
  found.exp_h = exp_entropy(counts);
  found.m_sum_sq = experts * shares_squared;
  return found;
}

std::size_t half_load_experts(std::span<const double> counts) {
  std::vector<double> sorted(counts.begin(), counts.end());
  std::ranges::sort(sorted, std::greater<>());
  const double total = std::reduce(sorted.begin(), sorted.end());
  double sum = 0.0;
  for (std::size_t i = 0; i < sorted.size(); ++i) {
    sum += sorted[i];
    if (2.0 * sum >= total) return i + 1;
  }
  return sorted.size();
}

double exp_entropy(std::span<const double> counts) {
  const double total = std::reduce(counts.begin(), counts.end());
  double entropy = 0.0;
  for (const double count : counts) {
    if (count > 0.0) entropy -= count / total * std::log(count / total);
  }
  return std::exp(entropy);
}

std::size_t dead_experts(std::span<const double> counts) {
  const double mean = std::reduce(counts.begin(), counts.end()) / static_cast<double>(counts.size());
  return static_cast<std::size_t>(
      std::ranges::count_if(counts, [&](double count) { return count < 0.01 * mean; }));
}

double cv_floor(double experts, double top_k, double tokens) {
  return std::sqrt((experts - top_k) / (top_k * tokens));
}

}  // namespace exfusion::analysis
