// How a top-k layer's router spreads and moves, and how different its experts are.
#pragma once
#include <cstdint>
#include <vector>

#include "analysis/bootstrap.h"
#include "analysis/specialisation.h"
#include "observe/topk_trace.h"

namespace exfusion {

// Entropies in nats, 0 to log M; p: the router's probabilities over all M experts.
struct TopkDynamics {
  double mean_entropy = 0.0;     // mean over tokens of H(p)
  double entropy_of_mean = 0.0;  // H(mean p)
  double information = 0.0;     // MI(token; expert) = entropy_of_mean - mean_entropy; 0 for a constant router
  double balance_loss = 0.0;    // M sum_e f_e P_e, 1 when balanced; without its coefficient
  double z_loss = 0.0;          // mean of (log sum exp logits)^2; without its coefficient
  double max_violation = 0.0;   // largest load over the mean, less 1
  std::size_t dead = 0;         // experts below 1 % of the mean load
  analysis::Quantity logit_sd;  // over tokens, of logits centred per token (analysis/quality.h)
  analysis::Quantity
      saturation;  // share of the sampled tokens' experts that the earlier observation chose too
  double saturation_chance = 0.0;  // of two unrelated choices: K / M
  // Distance of pairs of experts that tokens select together from pairs in proportion to the product of their
  // loads (half the sum of absolute differences of shares, 0 to 1), against choices swapped between tokens:
  // every expert keeps its load, every token its K. On at most 1024 sampled tokens; undefined for K = 1.
  analysis::NullComparison coactivation;
};

// `earlier` are the routes of the same tokens in another observation (TopkSums::routes); empty: none.
TopkDynamics topk_dynamics(const TopkObservation& of, std::size_t layer,
                           const std::vector<std::uint32_t>& earlier);

// All experts of a layer on 512 to 1024 of the trace's sampled tokens, or all if there are fewer.
struct ExpertRedundancy {
  // sqrt(sum over tokens of mean_k norm(f_k - mean f)^2 / sum of norm(y)^2), y the layer's output; copies: 0
  double functional_diversity = 0.0;
  std::vector<double> weight_cosine;  // [M, M], of the two weight matrices as they are stored: hidden units
                                      // are not matched. Fresh experts: 0 on average
  std::vector<double> offset_cosine;  // [M, M], of the differences from the mean expert, which hide nothing
                                      // behind a common part. Unrelated experts: -1 / (M - 1). Copies: NaN
};
// Of each layer of the trace that observe_topk made of `model`; of one without a sample nothing.
std::vector<ExpertRedundancy> expert_redundancy(const Model& model, const analysis::Trace& trace);

}  // namespace exfusion
