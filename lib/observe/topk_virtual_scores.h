// What the loss would have each held-out token of a top-k layer choose, beside what the router chose
// (docs/metrics.md; our own construction). fp32 on the CPU.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "observe/expert_preferences.h"
#include "observe/held_out.h"
#include "observe/topk_trace.h"

namespace exfusion {

// One top-k layer on a batch; rows are tokens, image after image.
struct TopkPass {
  at::Tensor x, stream;  // [n, tokens, dim]: the FFN's input, and what its output is added to
  TopkFfn::Routing routing;
  at::Tensor y, delta;  // [rows, dim]: the output; dL/dy, L the cross entropy of the row's own image
};
// Of every one of `blocks`, which are the model's: one forward and one backward pass in evaluation mode.
std::vector<TopkPass> topk_passes(Model& model, const std::vector<TopkBlock>& blocks,
                                  const HeldOutBatch& batch);

// s_k(t) = -<delta(t), f_k(x_t) - y_t>: what the loss falls by, to first order, per step from y towards the
// output f_k of expert k alone. [tokens, M], and per unit of norm(f_k - y); from outputs [tokens, M, dim].
TokenScores output_scores(const at::Tensor& outputs, const at::Tensor& y, const at::Tensor& delta);

// Numbers of tokens with one preferred expert, per batch [B] but the last: of all of them, of those whose
// router's first choice it is, of those that chose it among their K, and of those whose class's most frequent
// first choice it is.
struct RouterAgreement {
  std::vector<double> preferring, first, chosen, majority;
  double independent = 0.0;  // part of the tokens of which `first` would hold if the two were independent,
                             // with the loads that they have; NaN without tokens
};
// Of tokens of B batches: preferred [tokens] (-1: none), chosen [tokens, K], label and batch [tokens], int64.
RouterAgreement router_agreement(const at::Tensor& preferred, const at::Tensor& chosen,
                                 const at::Tensor& label, const at::Tensor& batch, std::int64_t experts,
                                 std::int64_t classes, std::int64_t batches);

struct TopkVirtualScores {
  std::int64_t block = 0, experts = 0, top_k = 0;
  VirtualScores scores;  // compared with experts whose f_k - y has the sign of each coordinate drawn anew,
                         // the same for all tokens of the expert
  RouterAgreement agreement;
};

inline constexpr std::int64_t kScoredTokens = 2048;  // at most, of all batches, that the loss sees

// Of each layer with two experts or more; every expert runs on the sampled tokens.
std::vector<TopkVirtualScores> observe_topk_scores(Model& model, const std::vector<HeldOutBatch>& batches,
                                                   std::int64_t classes);

}  // namespace exfusion
