// Scores of experts for pruning: S_j(b, alpha, beta) = N_j^-b sum over tokens routed to j of gate^alpha
// norm^beta, with the norm of the expert's output before the gate (Liu et al., arXiv 2606.15716; the formula
// is second-hand). All come from six sums per expert. Beside them two of this project's: RSD, the damage when
// an expert goes and the other gates grow to the old sum, and Taylor, the loss that its going adds to first
// order.
#pragma once
#include <string>
#include <vector>

#include "analysis/trace.h"

namespace exfusion::analysis {

// Sums over batches, each [M]; empty: not in this trace.
struct Accumulators {
  std::vector<double> n;    // tokens routed to the expert
  std::vector<double> g1;   // gate
  std::vector<double> a1;   // norm
  std::vector<double> a2;   // norm^2
  std::vector<double> ga;   // gate norm
  std::vector<double> ga2;  // (gate norm)^2
  std::vector<double> r;    // gate / (s - gate) norm(s output - h): h the layer's output, s the gates' sum
  std::vector<double> t1;   // -gate <dL/dh, output>
};
Accumulators accumulate(const TraceLayer& layer, std::size_t experts);

struct Score {
  std::string name;                // published, or "s_<b><alpha><beta>"; "rsd", "taylor"
  int b = 0, alpha = 0, beta = 0;  // -1: not of this family (rsd, taylor)
  std::vector<double> values;      // [M]; empty: `reason`. An expert that no token selects has 0
  std::string reason;
};

// One of the 18 scores with b 0 or 1, alpha and beta 0 to 2.
Score expert_score(const Accumulators& of, int b, int alpha, int beta);
std::vector<Score> expert_scores(const Accumulators& of);  // all 18, rsd, taylor

// The order in which experts are pruned by a score: lowest first, ties by number.
std::vector<std::size_t> prune_order(const std::vector<double>& values);

}  // namespace exfusion::analysis
