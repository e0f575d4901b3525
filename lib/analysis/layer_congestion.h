// What one layer's trace says about congestion: estimates, their nulls and intervals. Names are those of the
// JSON (docs/metrics.md has the formulas).
#pragma once
#include <array>
#include <string>
#include <vector>

#include "analysis/bootstrap.h"
#include "analysis/trace.h"

namespace exfusion::analysis {

// The price that training puts on load, as far as the trace knows it.
struct ExplicitPart {
  Quantity aux_share_sums_to_1;  // coef * M
  Quantity aux_share_sums_to_k;  // coef * M * K
  Quantity selection_bias;       // slope of -bias on m
};

struct LayerCongestion {
  Quantity gamma_eff;           // under Q2, by `gamma_estimator`
  std::string gamma_estimator;  // "E3" or "E1'", "" where gamma_eff is undefined
  Interval gamma_ci;
  Quantity gamma_iv;     // E1' under Q2
  Quantity temperature;  // under Q2
  Quantity gamma_null;   // a Gaussian router without congestion, simulated
  Quantity gamma_null_closed_form;
  Quantity gamma_excess;  // gamma_eff - gamma_null
  Interval gamma_excess_ci;
  Quantity gamma_probe;
  std::array<Quantity, 4> gamma_by_quality, null_by_quality;  // Q1 to Q4
  Quantity sigma;                                             // token spread of logits
  bool sigma_uncentred = false;
  Quantity quality_range;     // largest less smallest mean logit
  Quantity softmax_max_mean;  // M max softmax(q): the imbalance that quality alone would make
  Quantity sigma_bias;        // spread over experts of mean logits
  Quantity epsilon_l1, epsilon_nash;
  ExplicitPart explicit_part;
  std::size_t batches = 0;
  std::vector<double> resampled_gamma, resampled_excess;  // empty where there is no interval
};

// Without `intervals` nothing is resampled: the estimates alone, in a fraction of the time.
LayerCongestion analyse_congestion(const Trace& trace, const TraceLayer& layer, bool intervals = true);

}  // namespace exfusion::analysis
