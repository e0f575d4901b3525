// What the FFNs of a model see on held-out images, and what the loss wants of them: one forward and one
// backward pass.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "models/model.h"
#include "observe/held_out.h"

namespace exfusion {

// The tokens of one FFN y = W2 gelu(W1 x + b1) + b2, a row each; the gradients are those of the cross entropy
// of the token's own image, not of a mean. Tokens that the loss does not see (in a last block with a class
// token all but that one) are left out.
struct FfnTokens {
  at::Tensor x, activated;    // [tokens, dim]; [tokens, hidden]: after GELU
  at::Tensor delta1, delta2;  // [tokens, hidden]: dL/d(W1 x + b1); [tokens, dim]: dL/dy
  at::Tensor growth;          // [tokens]: dL/d eps for W <- (1 + eps) W, all four tensors
  at::Tensor image, label;    // [tokens] int64: row in the batch, and its class
  std::int64_t size() const { return x.size(0); }
};

// One block's FFN: its tokens, or with a mixture of experts those of each expert (y is then its output before
// the gate, and a token stands with each expert that it is sent to; size 0: nobody came).
struct BlockTokens {
  std::int64_t block = 0;
  std::vector<FfnTokens> parts;
};

// Of the blocks whose FFN is dense or topk, in order; other kinds are skipped. fp32 on the CPU, evaluation
// mode; no gradient of a parameter is touched.
std::vector<BlockTokens> observe_tokens(Model& model, const HeldOutBatch& batch);

// Every `stride`-th row from `first` on; the rows of several batches under each other, their images numbered
// on.
FfnTokens every_row(const FfnTokens& tokens, std::int64_t first, std::int64_t stride);
FfnTokens stacked(const std::vector<FfnTokens>& parts);

}  // namespace exfusion
