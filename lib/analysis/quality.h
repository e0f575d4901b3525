// What an expert is worth to the router, four ways, from the sums of a trace; and the spread of its logits.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "analysis/trace.h"

namespace exfusion::analysis {

// The four estimators of quality; which ones the paper used is not known (reconstructed).
enum class Quality {
  mean_prob,      // Q1: log of the mean router probability
  mean_logit,     // Q2: mean logit, the headline
  gate_selected,  // Q3: log of the mean gate of the tokens that selected the expert
  gate_norm,      // Q4: log of the mean of gate * norm of the output, of those tokens
};
inline constexpr Quality kQualities[] = {Quality::mean_prob, Quality::mean_logit, Quality::gate_selected,
                                         Quality::gate_norm};

// Sums over some batches, each [M]; empty: not in this trace.
struct QualitySums {
  double tokens = 0.0;
  std::vector<double> count, prob, logit, logit_sq, gate, gate_norm;
};
// Each batch b enters `times[b]` times.
QualitySums sum_batches(const TraceLayer& layer, std::size_t experts, const std::vector<double>& times);

// [M] qualities; or, with none, `reason`: the field that is missing, or an expert without tokens.
struct Qualities {
  std::vector<double> q;
  std::string reason;
};
Qualities qualities(const QualitySums& sums, Quality which);

// Per batch, sums over its sampled tokens of the logits centred per token: what sigma needs of a sample.
struct CentredSample {
  std::vector<double> tokens;   // [B]
  std::vector<double> sum;      // [B, M]
  std::vector<double> squares;  // [B], summed over experts
};
CentredSample centre_sample(const TraceLayer& layer, std::size_t experts);

// Root of the mean over experts of the variance over sampled tokens of the centred logits, times
// sqrt(M / (M - 1)), which undoes what centring takes. nullopt with less than two sampled tokens.
std::optional<double> sample_sigma(const CentredSample& sample, std::size_t experts,
                                   const std::vector<double>& times);
// The same from the sums, with what all logits of a token share still in it; nullopt where they are not in
// the trace.
std::optional<double> uncentred_sigma(const QualitySums& sums);

}  // namespace exfusion::analysis
