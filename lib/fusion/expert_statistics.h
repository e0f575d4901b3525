// What the experts of an FFN do, from weights and prices alone (formulas: docs/metrics.md).
#pragma once
#include <span>
#include <vector>

#include "fusion/expert_bank.h"

namespace exfusion {

// sum_k |a_k|: with AdamW and a slowly varying a, the factor on the learning rate of the fused FFN.
double sum_of_sizes(std::span<const float> a);
// Entropy of |a| / sum |a| in nats: 0 (one expert) to log N (all alike).
double weight_entropy(std::span<const float> a);
// max_k(lambda - c_k) with lambda = sum_k a_k c_k for weights on the simplex: >= 0, and 0 where no expert's
// price (dL/da_k) is below the mean, the equilibrium of Wardrop.
double wardrop_gap(std::span<const float> a, std::span<const double> prices);

// Of the two weight matrices of an FFN, biases left out. D_k = W_k - mean of W. NaN where it is undefined:
// one expert, identical experts at the start, or a start that is not known.
struct ExpertGeometry {
  std::vector<double> shares;         // [N] a_k <W_k, W> / |W|^2, sum 1: who carries the fused tensor
  double difference_ratio = 0.0;      // |D_t| / |D_0| over all experts
  double difference_cosine = 0.0;     // cos(D_t, D_0)
  double update_participation = 0.0;  // tr(Gram)^2 / |Gram|^2 of U_k = W_k(t) - decay W_k(0): 1 to N
                                      // directions in which experts have learned
};

// `decay` is the product of 1 - lr weight_decay over all updates so far: with constant a, what is left of
// D_0. Draws the initial experts anew, one FFN at a time.
ExpertGeometry measure_geometry(const ExpertBank& bank, double decay);

}  // namespace exfusion
