// Which expert of a fused set each held-out token would like to have more of: a router that is not there
// (docs/metrics.md; our own construction). All tensors fp32 on the CPU, double in tests.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "analysis/specialisation.h"
#include "observe/ffn_tokens.h"
#include "observe/fused_sets.h"

namespace exfusion {

// [tokens, N]: s_k(t) = -d loss(t)/d eps for W <- W + eps D_k, D [N, …] in the order of kFfnTensors.
at::Tensor direction_scores(const FfnTokens& tokens, const FfnTensors& directions);

// [tokens] int64: the expert with the highest score, or -1 where the highest is shared.
at::Tensor preferred_experts(const at::Tensor& scores);

// N random directions: signs with the norm of each of `offsets`' tensors, less their sum weighted by a, as
// the offsets are. A function of (repetition, block).
FfnTensors random_directions(const FfnTensors& offsets, std::span<const double> a, std::uint32_t repetition,
                             std::int64_t block);

// Over B batches, N experts, C classes. Means and NMI are NaN without tokens.
struct VirtualScores {
  VirtualScores(std::int64_t batches, std::int64_t experts, std::int64_t classes);
  std::vector<double> tokens, ties;       // [B]: looked at; of these without a preferred expert
  std::vector<double> load;               // [B, N]: tokens that prefer the expert
  std::vector<double> score;              // [B, N]: sums of s_k
  std::vector<double> table;              // [N, C]: tokens of the class that prefer the expert
  std::vector<double> class_tokens;       // [C]
  std::vector<double> class_score;        // [N, C]: S_k(c), mean of s_k over the class
  double nmi = 0.0, nmi_corrected = 0.0;  // of `table`: I / sqrt(H H), and with Miller and Madow's I
  analysis::NullComparison shuffle;       // nmi when images swap their classes
  analysis::NullComparison random;        // nmi of a sample of tokens against that of random directions
};

// Adds batches up, one fused set.
class VirtualScoreSums {
 public:
  // `batches`: how many there will be at most.
  VirtualScoreSums(const FusedSet& set, std::int64_t batches, std::int64_t classes);
  void add(const FfnTokens& tokens);
  VirtualScores finish() const;
  bool empty() const { return next_ == 0; }
  FfnTokens sample() const { return stacked(sampled_); }  // up to kSampledTokens of the tokens so far

 private:
  static constexpr std::int64_t kSampledTokens = 512;
  const FusedSet& set_;
  FfnTensors offsets_;
  VirtualScores sums_;
  std::int64_t batches_, classes_, next_ = 0, images_ = 0;  // images: so far
  std::vector<FfnTokens> sampled_;
  std::vector<at::Tensor> preferred_, image_, label_;  // of all tokens, by batch
};

}  // namespace exfusion
