// A pre-norm transformer block (timm's Block): x + attn(norm1(x)), then x + mlp(norm2(x)).
#pragma once
#include <memory>

#include "nn/attention.h"
#include "nn/feed_forward.h"
#include "nn/residual.h"

namespace exfusion {

class Block : public torch::nn::Module {
 public:
  Block(std::int64_t dim, std::int64_t heads, std::shared_ptr<FeedForward> mlp);
  // The factors [n] multiply each sample's two branches (nn/drop_path.h); undefined: 1. The FFN's branch is
  // left for the next norm to add.
  Residual forward(const Residual& x, const at::Tensor& attention_factor, const at::Tensor& ffn_factor);

 private:
  std::shared_ptr<LayerNorm> norm1_;
  std::shared_ptr<Attention> attn_;
  std::shared_ptr<LayerNorm> norm2_;
  std::shared_ptr<FeedForward> mlp_;
};

}  // namespace exfusion
