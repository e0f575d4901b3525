// Which expert each token would like to have more of, counted: from a score of every expert on every token
// (docs/metrics.md; our own construction). All tensors on the CPU.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "analysis/specialisation.h"
#include "core/random.h"

namespace exfusion {

// First-order scores rank experts by the size of what they change too; `per_unit` is the score over that
// size, 0 where the size is.
struct TokenScores {
  at::Tensor scores, per_unit;  // [tokens, N]
};
// `sizes` [N] or [tokens, N], >= 0.
TokenScores with_sizes(const at::Tensor& scores, const at::Tensor& sizes);

// [tokens] int64: the expert with the highest score, or -1 where the highest is shared.
at::Tensor preferred_experts(const at::Tensor& scores);

// [tokens, N]: softmax over experts of a token's scores divided by their standard deviation (divisor N; a
// temperature of 1: scores have no scale of their own). 1/N each where all are equal.
at::Tensor soft_preferences(const at::Tensor& scores);

// Over B batches, N experts, C classes. Means and NMI are NaN without tokens.
struct VirtualScores {
  VirtualScores(std::int64_t batches, std::int64_t experts, std::int64_t classes);
  std::vector<double> tokens, ties;       // [B]: looked at; of these without a preferred expert
  std::vector<double> load;               // [B, N]: tokens that prefer the expert
  std::vector<double> soft_load;          // [B, N]: sums of soft_preferences
  std::vector<double> unit_load;          // [B, N]: tokens that prefer it per unit
  std::vector<double> score;              // [B, N]: sums of s_k
  std::vector<double> table;              // [N, C]: tokens of the class that prefer the expert
  std::vector<double> class_tokens;       // [C]
  std::vector<double> class_score;        // [N, C]: S_k(c), mean of s_k over the class
  double nmi = 0.0, nmi_corrected = 0.0;  // of `table`: I / sqrt(H H), and with Miller and Madow's I
  analysis::NullComparison shuffle;       // nmi when images swap their classes
  // Of a sample of the tokens, against scores of random directions (compare_with_random): nmi, and the mean
  // parts of the tokens, [N] each, that random directions of the experts' sizes would get.
  analysis::NullComparison random;
  std::vector<double> random_load, random_soft_load, random_unit_load;
};

inline constexpr std::uint32_t kRandomDirections = 20;

// Sets the last four fields from the scores of one sample of tokens under each set of directions.
void compare_with_random(const TokenScores& measured, const std::vector<TokenScores>& random,
                         const at::Tensor& label, VirtualScores& found);

// Adds batches up.
class PreferenceSums {
 public:
  // `batches`: how many there will be at most; `block` chooses the draws of the shuffles.
  PreferenceSums(std::int64_t batches, std::int64_t experts, std::int64_t classes, std::int64_t block);
  // `image` counts from 0 in each batch; `label` is its class, [tokens] int64 both.
  void add(const TokenScores& scores, const at::Tensor& image, const at::Tensor& label);
  VirtualScores finish() const;  // not compared with random directions
  std::int64_t added() const { return next_; }

 private:
  VirtualScores sums_;
  std::int64_t experts_, classes_, block_, next_ = 0, images_ = 0;  // images: so far
  std::vector<at::Tensor> preferred_, image_, label_;               // of all tokens, by batch
};

// +1 or -1 each, fp32, from one random bit.
at::Tensor random_signs(at::IntArrayRef sizes, CounterRandom& random);

}  // namespace exfusion
