// A pre-norm transformer block (timm's Block): x + attn(norm1(x)), then x + mlp(norm2(x)).
#pragma once
#include <memory>

#include "nn/attention.h"
#include "nn/feed_forward.h"

namespace exfusion {

class Block : public torch::nn::Module {
 public:
  Block(std::int64_t dim, std::int64_t heads, std::shared_ptr<FeedForward> mlp);
  // x [n, tokens, dim] -> the same shape. The factors [n] multiply each sample's two branches
  // (nn/drop_path.h); undefined: 1.
  at::Tensor forward(const at::Tensor& x, const at::Tensor& attention_factor, const at::Tensor& ffn_factor);

 private:
  std::shared_ptr<LayerNorm> norm1_;
  std::shared_ptr<Attention> attn_;
  std::shared_ptr<LayerNorm> norm2_;
  std::shared_ptr<FeedForward> mlp_;
};

}  // namespace exfusion
