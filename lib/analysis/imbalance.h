// How unequal the loads of experts are.
#pragma once
#include <span>

namespace exfusion::analysis {

struct Imbalance {
  double max_mean = 0.0, min_mean = 0.0;  // largest and smallest load over the mean
  double cv = 0.0;                        // standard deviation (divisor M) over the mean
  double gini = 0.0;                      // 0 equal, 1 - 1/M all on one
  double exp_h = 0.0;                     // exp of the entropy of the shares: 1 to M
  double m_sum_sq = 0.0;                  // M sum m^2: 1 to M
};
Imbalance imbalance(std::span<const double> counts);  // >= 0, not all 0

// The smallest number of experts, largest first, that carry at least half of the load.
std::size_t half_load_experts(std::span<const double> counts);

// exp(entropy) of the shares.
double exp_entropy(std::span<const double> counts);

// Experts with less than 1 % of the mean load.
std::size_t dead_experts(std::span<const double> counts);

// The coefficient of variation that tokens alone make when each selects K of M experts at random:
// sqrt((M - K) / (K tokens)).
double cv_floor(double experts, double top_k, double tokens);

}  // namespace exfusion::analysis
