// How alike experts are, whatever the order of their hidden units and the basis of their outputs
// (docs/metrics.md). For top-k experts and fused sets.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "observe/fused_sets.h"
#include "observe/held_out.h"

namespace exfusion {

class Model;

// Linear CKA of x [n, p] and y [n, q], rows the same tokens, columns centred (Kornblith et al. 2019):
// norm(y'x)^2 / (norm(x'x) norm(y'y)), 0 to 1. NaN where one of them does not vary. Unrelated white x and y
// reach about p / n.
double linear_cka(const at::Tensor& x, const at::Tensor& y);

// Cosine of two FFNs' weight matrices, [hidden, dim] and [dim, hidden] each, with the hidden units of the
// second put in the order that makes it largest (best_assignment of the units' inner products).
struct AlignedCosine {
  double cosine = 0.0;
  double in_place = 0.0;  // part of the units that stay where they are; of unrelated ones 1 / hidden
};
AlignedCosine aligned_cosine(const FfnTensors& one, const FfnTensors& other);

// Of one layer's pairs of experts (expert_pairs.h), [pairs] each; f_k are outputs on common tokens, y the
// layer's output.
struct ExpertSimilarity {
  std::int64_t block = 0;
  std::vector<std::pair<std::int64_t, std::int64_t>> pairs;
  std::int64_t tokens = 0, dim = 0;
  std::vector<double> cka, cka_shuffled;                // of f_i and f_j; with the tokens of f_j shuffled
  std::vector<double> cka_offset, cka_offset_shuffled;  // of f_i - y and f_j - y; y unshuffled
  std::vector<AlignedCosine> aligned;                   // empty: `not_aligned` says why
  std::vector<AlignedCosine> aligned_random;            // with the inputs and outputs of j's units shuffled
  std::string not_aligned;
};

inline constexpr std::int64_t kCommonTokens = 4096;  // at most, over all batches, random ones
inline constexpr std::int64_t kMostMatched = 1536;   // hidden units; matching takes about hidden^3

std::vector<ExpertSimilarity> expert_similarities(Model& model, const std::vector<FusedSet>& sets,
                                                  const std::vector<HeldOutBatch>& batches,
                                                  const std::function<void(double)>& progress = {});

}  // namespace exfusion
