// A model on one batch of held-out images as its FFNs see it: the one pass that all analyses of the batch
// share.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "models/model.h"
#include "nn/topk_ffn.h"
#include "observe/ffn_tokens.h"
#include "observe/held_out.h"

namespace exfusion {

// One block's FFN, dense or topk, on all its tokens T = n * tokens. Of a topk FFN also its routing.
struct BlockPass {
  at::Tensor x, stream, y;   // [n, tokens, dim]: the input, what the output y is added to, y
  at::Tensor router_logits;  // [T, M]; undefined for a dense FFN, as the next two
  TopkFfn::Routing routing;  // of its K chosen experts
  at::Tensor outputs;        // [T, K, dim]: of these experts, before their gates
  at::Tensor gradient;       // [T, dim]: of the summed cross entropy by y; with gradients
  BlockTokens tokens;        // the block; its parts with gradients
};

struct ModelPass {
  std::vector<BlockPass> blocks;                        // of the blocks whose FFN is dense or topk, in order
  at::Tensor logits;                                    // [n, classes]
  const BlockPass& of_block(std::int64_t block) const;  // which must be one of them
};

// Forward, and with `gradients` backward. Evaluation mode, fp32 on the CPU; no gradient of a parameter is
// touched, and nothing that is returned keeps a graph. Holds the activations of the batch in all FFNs.
ModelPass pass_through(Model& model, const HeldOutBatch& batch, bool gradients);

// TopkFfn::outputs for the numbers of tokens of each expert that no other batch has: oneDNN, which makes a
// kernel for every new shape, would be slower than the products themselves. Without gradients of the experts.
at::Tensor expert_outputs(const TopkFfn& ffn, const at::Tensor& x, const at::Tensor& chosen);

}  // namespace exfusion
