// SMEAR (Muqeeth, Liu and Raffel 2023, arXiv 2306.03745): each example gets an FFN of its own, merged from
// the experts by a router on its mean token:
//
//   p = softmax(R mean_tokens(x)),  W = sum_k p_k W_k,  y = fc2(gelu(fc1(x))) with the tensors W
//
// Left out of the paper's form: layer norms of the router's input and weights, dropping of experts. It has no
// dense form, since W depends on the example. The merge is in fp32; a pass keeps one merged FFN per example.
#pragma once
#include <memory>

#include "nn/experts.h"
#include "nn/ffn_config.h"

namespace exfusion {

class SmearFfn : public FeedForward {
 public:
  SmearFfn(const FfnConfig& config, std::int64_t dim, std::int64_t hidden, std::int64_t ffn);
  at::Tensor forward(const at::Tensor& x) override;
  void draw_parameters(std::uint64_t seed, std::int64_t ffn) override;
  std::optional<FfnTensors> dense_form() const override { return std::nullopt; }
  double forward_flops(std::int64_t tokens) const override;  // the merge among them

 private:
  std::shared_ptr<Router> router_;
  std::shared_ptr<Experts> experts_;
};

}  // namespace exfusion
