// What held-out images say about a model's FFNs through their gradients: one pass over the batches.
#pragma once
#include <cstdint>
#include <vector>

#include "observe/fused_functions.h"
#include "observe/fused_sets.h"
#include "observe/held_out.h"
#include "observe/interference.h"
#include "observe/virtual_scores.h"

namespace exfusion {

struct FusedObservation {
  std::int64_t block = 0;
  std::vector<double> offset_norm;  // [N] |D_k|
  FusedGeometry geometry;
  VirtualScores scores;
  HeldOutPrices prices;
  FunctionDifference functions;  // on the sample of tokens that the random directions see
};

struct BlockInterference {
  std::int64_t block = 0;
  Interference found;
};

struct GradientObservation {
  std::vector<FusedObservation> fused;  // one per set; of one that is not whole everything is NaN or 0
  std::vector<BlockInterference> interference;  // one per block with a dense or topk FFN
};

// `most_batches`: B of the results, at least as many as there are batches. None: the results' shapes, with
// NaN.
GradientObservation observe_gradients(Model& model, const std::vector<FusedSet>& sets,
                                      const std::vector<HeldOutBatch>& batches, std::int64_t most_batches,
                                      std::int64_t classes);

}  // namespace exfusion
