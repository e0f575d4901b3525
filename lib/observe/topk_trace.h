// What the top-k layers of a model do on held-out images: a routing trace (docs/formats.md), and sums per
// class. Everything is plain double and adds up over parts of the images.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "analysis/scores.h"
#include "analysis/trace.h"
#include "nn/block.h"
#include "nn/topk_ffn.h"
#include "observe/block_share.h"
#include "observe/held_out.h"
#include "observe/model_pass.h"

namespace exfusion {

// The blocks with a top-k FFN of two experts or more (of one there is nothing to tell), in their order.
struct TopkBlock {
  std::int64_t number = 0;  // among all blocks
  std::shared_ptr<Block> block;
  std::shared_ptr<TopkFfn> ffn;
};
std::vector<TopkBlock> topk_blocks(const std::vector<std::shared_ptr<Block>>& blocks);

// Of one layer, over all tokens: what its trace does not hold. M experts, K per token, S sampled tokens.
struct TopkSums {
  double tokens = 0.0;
  analysis::Accumulators by_class;    // [classes, M] each; `n` is the class table. analysis::expert_scores of
                                      // it are scores per class
  double entropy = 0.0;               // of the router's probabilities, nats
  double log_sum_exp_sq = 0.0;        // of the logits, squared
  std::vector<double> together;       // [M, M]: tokens that select both; on the diagonal, the one
  std::vector<double> router_norms;   // [M]: l2 norms of the router's rows
  std::vector<std::uint32_t> routes;  // [S, K]: the experts of the trace's sampled tokens
};

struct TopkObservation {
  analysis::Trace trace;  // `layer`: the block's number; items: the images, with their classes. No layers
                          // for a model without top-k blocks
  std::vector<TopkSums> sums;  // of the trace's layers
};

inline constexpr std::int64_t kSampledTokens = 4096;  // at most, over all batches; the same in every layer

// Adds the passes of batches up, in their order. Labels must lie in 0 .. classes - 1.
class TopkSeen {
 public:
  // `batches`: how many there will be; so many share the sample. Layers that are not in `share` stay empty.
  TopkSeen(const Model& model, std::int64_t batches, std::int64_t classes, const BlockShare& share = {});
  void add(const ModelPass& pass, const HeldOutBatch& batch);
  bool empty() const { return found_.trace.layers.empty(); }  // no top-k blocks
  const TopkObservation& found() const { return found_; }

 private:
  TopkObservation found_;
  BlockShare share_;
  std::int64_t batches_, classes_, next_ = 0, images_ = 0;  // images: so far
};

// Of all these batches. With `gradients` a backward pass each for the Taylor sums (of each image's own
// cross-entropy).
TopkObservation observe_topk(Model& model, const std::vector<HeldOutBatch>& batches, std::int64_t classes,
                             bool gradients);

// Norm of the change of h = sum_k g_k f_k when one expert goes and the other gates grow to the old sum s:
// g / (s - g) norm(s f - h), exactly (s is 1 with renormalised gates). From outputs [tokens, K, dim] and
// gates [tokens, K], double [tokens, K]; 0 where the other gates are all 0, so that nothing could replace it.
at::Tensor renormalised_damage(const at::Tensor& outputs, const at::Tensor& gates);

}  // namespace exfusion
