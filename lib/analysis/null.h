// What a router without congestion shows: logits z_i = b_i + sigma xi with Gaussian token noise xi, the K
// largest selected. Token noise alone gives gamma = M (sigma / h - 1) to first order in b, so an estimate
// means something only beside this null.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "analysis/quality.h"
#include "analysis/trace.h"

namespace exfusion::analysis {

// The closed form: tau with upper tail K/M, hazard h = phi(tau) M/K, temperature sigma/h. K < M.
struct GaussianNull {
  double tau = 0.0, hazard = 0.0, temperature = 0.0, gamma = 0.0;
};
GaussianNull gaussian_null(double experts, double top_k, double sigma);

struct GaussianRouter {
  std::vector<double> bias;  // [M]: mean logits
  double sigma = 0.0;
  std::size_t top_k = 1;  // < M
  RouterScores scores = RouterScores::softmax;
  bool renormalised = false;  // gates sum to 1 over the selected experts
};

// Averages over simulated tokens, each [M]. `share` sums to 1: the expectation over an expert's own noise
// given that of the others, which leaves a hundredth of the variance of counting.
struct RouterAverages {
  std::vector<double> share, mean_prob, gate_selected;
};
RouterAverages simulate_router(const GaussianRouter& router, std::int64_t tokens, std::uint32_t layer);

// Shares of the same router with a fixed threshold, the limit of many experts: smooth in bias and sigma.
std::vector<double> fixed_threshold_shares(std::span<const double> bias, double sigma, std::size_t top_k);

// The estimate that the router shows under the qualities `q` when its loads are counted over `tokens` tokens:
// the mean over antithetic pairs of sampled loads of E3, or of E1' on two halves where E3 of the expected
// loads lies below its branch. nullopt without a finite estimate.
struct NullGamma {
  double value = 0.0;
  bool below = false;  // by E1'
};
std::optional<NullGamma> null_gamma(std::span<const double> q, std::span<const double> share,
                                    std::size_t top_k, double tokens, std::uint32_t layer);

// Whether gates sum to the same over every token: their sum is in proportion to the tokens of each batch.
bool gates_renormalised(const TraceLayer& layer, std::size_t experts);

}  // namespace exfusion::analysis
