#include "nn/block.h"

#include "nn/drop_path.h"

namespace exfusion {

Block::Block(std::int64_t dim, std::int64_t heads, std::shared_ptr<FeedForward> mlp)
    : norm1_(register_module("norm1", std::make_shared<LayerNorm>(dim))),
      attn_(register_module("attn", std::make_shared<Attention>(dim, heads))),
      norm2_(register_module("norm2", std::make_shared<LayerNorm>(dim))),
      mlp_(register_module("mlp", std::move(mlp))) {}

at::Tensor Block::forward(const at::Tensor& x, const at::Tensor& attention_factor,
                          const at::Tensor& ffn_factor) {
  const auto attended = add_branch(x, attn_->forward(norm1_->forward(x)), attention_factor);
  return add_branch(attended, mlp_->forward(norm2_->forward(attended)), ffn_factor);
}

}  // namespace exfusion
