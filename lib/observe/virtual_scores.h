// Which expert of a fused set each held-out token would like to have more of: a router that is not there
// (docs/metrics.md; our own construction). All tensors fp32 on the CPU, double in tests.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "observe/expert_preferences.h"
#include "observe/ffn_tokens.h"
#include "observe/fused_sets.h"

namespace exfusion {

// [tokens, N]: s_k(t) = -d loss(t)/d eps for W <- W + eps D_k, D [N, …] in the order of kFfnTensors.
at::Tensor direction_scores(const FfnTokens& tokens, const FfnTensors& directions);

// N random directions: signs with the norm of each of `offsets`' tensors, less their sum weighted by a, as
// the offsets are. A function of (repetition, block).
FfnTensors random_directions(const FfnTensors& offsets, std::span<const double> a, std::uint32_t repetition,
                             std::int64_t block);

// Prices c_k = dL/da_k = <G, W_k> of held-out images, L the mean cross entropy: what a little more weight of
// expert k costs. NaN without images.
struct HeldOutPrices {
  HeldOutPrices(std::int64_t batches, std::int64_t experts);
  std::vector<double> sum;          // [B, N]: over the images of the batch
  std::vector<double> images;       // [B]
  std::vector<double> price;        // [N]: mean over images
  std::vector<double> price_error;  // [N]: of c_k - sum_j a_j c_j, standard error over batches
  std::vector<double> saliency;  // [N]: -a_k c_k, the loss that dropping the expert adds to first order where
                                 // nothing takes its share
};

// Adds batches up, one fused set.
class VirtualScoreSums {
 public:
  // `batches`: how many there will be at most.
  VirtualScoreSums(const FusedSet& set, std::int64_t batches, std::int64_t classes);
  void add(const FfnTokens& tokens);
  VirtualScores finish() const;
  HeldOutPrices prices() const;
  bool empty() const { return sums_.added() == 0; }
  FfnTokens sample() const { return stacked(sampled_); }  // up to kSampledTokens of the tokens so far

 private:
  static constexpr std::int64_t kSampledTokens = 256;
  TokenScores scores(const FfnTokens& tokens, const FfnTensors& directions) const;

  const FusedSet& set_;
  FfnTensors offsets_;
  HeldOutPrices prices_;
  PreferenceSums sums_;
  std::int64_t batches_;
  std::vector<FfnTokens> sampled_;
};

}  // namespace exfusion
