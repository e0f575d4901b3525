// Experts weights averaging (Huang et al. 2023, arXiv 2308.06093): in training, each step sends a random
// uniform partition of its tokens to the experts, and after each update the experts share their weights,
//
//   W_i <- (1 - beta) W_i + beta / (N - 1) sum over j != i of W_j,  beta = share_rate * progress of the run;
//
// in evaluation it is the dense FFN of the experts' mean, which is also what it is deployed as.
//
// The paper is public in parts only. Reconstructed, and so ours: the update's exact form, a ramp from 0 at
// the start to share_rate at the end, experts that start from different draws, moments of AdamW that are not
// shared, and the default share rate. Parts of the partition are equal up to one token.
#pragma once
#include <memory>

#include "nn/experts.h"
#include "nn/ffn_config.h"

namespace exfusion {

class EwaFfn : public FeedForward {
 public:
  EwaFfn(const FfnConfig& config, std::int64_t dim, std::int64_t hidden, std::int64_t ffn);
  at::Tensor forward(const at::Tensor& x) override;
  void draw_parameters(std::uint64_t seed, std::int64_t ffn) override;
  void begin_pass(const PassPosition& position) override { position_ = position; }
  void after_update(double progress) override;
  std::optional<FfnTensors> dense_form() const override { return experts_->mean(); }
  double forward_flops(std::int64_t tokens) const override;

 private:
  double share_rate_;
  std::int64_t ffn_;
  std::shared_ptr<Experts> experts_;
  PassPosition position_;
};

}  // namespace exfusion
