// A pre-norm transformer block (timm's Block): x + attn(norm1(x)), then x + mlp(norm2(x)).
#pragma once
#include <functional>
#include <memory>
#include <vector>

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

  // What an observer puts in place of the FFN's forward pass: from the FFN's input and the stream that its
  // output is added to, both [n, tokens, dim], the output. Null: the FFN itself. For analyses; a model that
  // trains has none.
  using FfnObserver = std::function<at::Tensor(const at::Tensor& x, const at::Tensor& stream)>;
  void observe_ffn(FfnObserver observer) { observer_ = std::move(observer); }
  const std::shared_ptr<FeedForward>& ffn() const { return mlp_; }

 private:
  std::shared_ptr<LayerNorm> norm1_;
  std::shared_ptr<Attention> attn_;
  std::shared_ptr<LayerNorm> norm2_;
  std::shared_ptr<FeedForward> mlp_;
  FfnObserver observer_;
};

// A model's blocks in the order of the forward pass.
std::vector<std::shared_ptr<Block>> find_blocks(const torch::nn::Module& model);

}  // namespace exfusion
