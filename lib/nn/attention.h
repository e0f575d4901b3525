// Multi-head self-attention as timm's Attention: parameters qkv.{weight,bias} (q, k and v stacked, heads
// inside) and proj.{weight,bias}.
#pragma once
#include <memory>

#include "nn/layers.h"

namespace exfusion {

class Attention : public torch::nn::Module {
 public:
  Attention(std::int64_t dim, std::int64_t heads);  // dim is a multiple of heads
  at::Tensor forward(const at::Tensor& x);          // [n, tokens, dim] -> [n, tokens, dim]

 private:
  std::int64_t heads_;
  std::shared_ptr<Linear> qkv_, proj_;
};

}  // namespace exfusion
