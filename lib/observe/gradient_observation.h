// What held-out images say about a model's FFNs through their gradients.
#pragma once
#include <cstdint>
#include <map>
#include <vector>

#include "observe/block_share.h"
#include "observe/fused_functions.h"
#include "observe/fused_sets.h"
#include "observe/held_out.h"
#include "observe/interference.h"
#include "observe/model_pass.h"
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

// One FFN of a block, or the `parts` experts of a topk FFN.
struct BlockShape {
  std::int64_t block, parts, dim, hidden;
};

struct GradientObservation {
  std::vector<FusedObservation> fused;  // one per set; of one that is not whole everything is NaN or 0
  std::vector<BlockInterference> interference;  // one per block with a dense or topk FFN
};

// Adds the passes of batches up, in their order, with gradients.
class GradientsSeen {
 public:
  // `most_batches`: B of the results, at least as many as there will be batches. `sets` must outlive it.
  // Blocks that are not in `share` are as without batches.
  GradientsSeen(const Model& model, const std::vector<FusedSet>& sets, std::int64_t most_batches,
                std::int64_t classes, const BlockShare& share = {});
  void add(const ModelPass& pass, const HeldOutBatch& batch);
  GradientObservation finish() const;  // without batches: the results' shapes, with NaN

 private:
  const std::vector<FusedSet>& sets_;
  std::int64_t classes_;
  BlockShare share_;
  std::vector<BlockShape> shapes_;
  std::vector<VirtualScoreSums> scores_;              // of the sets
  std::map<std::int64_t, ClassGradients> gradients_;  // by block, from the first batch on; empty: too large
  bool started_ = false;
};

}  // namespace exfusion
