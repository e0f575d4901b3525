// How different the experts of a fused set are, as functions and as weights (docs/metrics.md; our own
// measures).
#pragma once
#include <ATen/core/Tensor.h>

#include <span>
#include <vector>

#include "observe/fused_sets.h"

namespace exfusion {

struct FunctionDifference {
  double diversity = 0.0;   // sqrt(sum_x sum_k a_k |f_k - fbar|^2 / sum_x |y|^2), fbar = sum_k a_k f_k
  double fusion_gap = 0.0;  // sqrt(sum_x |y - fbar|^2 / sum_x |y|^2): fused weights against fused outputs
};
// `outputs` [N, tokens, dim] of the experts, `fused` [tokens, dim]: y. NaN without tokens.
FunctionDifference compare_outputs(const at::Tensor& outputs, const at::Tensor& fused,
                                   std::span<const double> a);
// The same for inputs x [tokens, dim] of the FFN.
FunctionDifference compare_functions(const FusedSet& set, const at::Tensor& x);

// Of the two weight matrices; D_k = W_k - W. Cosines with an expert whose D_k is 0 are NaN.
struct FusedGeometry {
  std::vector<double> share;          // [N] a_k <W_k, W> / |W|^2, sum 1
  double n_eff_a = 0.0;               // exp entropy of |a| / sum |a|: 1 to N
  double n_eff_share = 0.0;           // the same of the shares
  double diversity_ratio = 0.0;       // sum_k a_k |D_k|^2 / |W|^2
  std::vector<double> weight_cosine;  // [N, N] cos(W_i, W_j)
  std::vector<double> offset_cosine;  // [N, N] cos(D_i, D_j)
};
// From the experts' inner products <W_i, W_j> and <D_i, D_j>, [N, N] double.
FusedGeometry fused_geometry(std::span<const double> a, const at::Tensor& weights, const at::Tensor& offsets);
FusedGeometry fused_geometry(const FusedSet& set);
FusedGeometry undefined_geometry(std::size_t experts);  // NaN

}  // namespace exfusion
