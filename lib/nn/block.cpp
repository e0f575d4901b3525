#include "nn/block.h"

namespace exfusion {

Block::Block(std::int64_t dim, std::int64_t heads, std::shared_ptr<FeedForward> mlp)
    : norm1_(register_module("norm1", std::make_shared<LayerNorm>(dim))),
      attn_(register_module("attn", std::make_shared<Attention>(dim, heads))),
      norm2_(register_module("norm2", std::make_shared<LayerNorm>(dim))),
      mlp_(register_module("mlp", std::move(mlp))) {}

Residual Block::forward(const Residual& x, const at::Tensor& attention_factor, const at::Tensor& ffn_factor) {
  const auto [stream, normed] = add_and_norm(x, *norm1_);
  const Residual attended{stream, attn_->forward(normed), attention_factor};
  const auto [sum, ffn_input] = add_and_norm(attended, *norm2_);
  return {sum, observer_ ? observer_(ffn_input, sum) : mlp_->forward(ffn_input), ffn_factor};
}

std::vector<std::shared_ptr<Block>> find_blocks(const torch::nn::Module& model) {
  std::vector<std::shared_ptr<Block>> found;
  for (const auto& module : model.modules(/*include_self=*/false)) {
    if (auto block = std::dynamic_pointer_cast<Block>(module)) found.push_back(std::move(block));
  }
  return found;
}

}  // namespace exfusion
