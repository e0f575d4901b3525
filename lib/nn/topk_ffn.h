// A sparse mixture of experts: a linear router sends each token to its top_k experts and sums their outputs,
// weighted by gates (Shazeer et al. 2017; Lepikhin et al. 2021, GShard; Fedus et al. 2022, Switch). It has no
// dense form.
//
//   p = softmax(R x)                     over all N experts, fp32
//   S = the top_k experts by p + b       ties go to the lower number; b is 0 without bias_balance
//   y = sum over k in S of g_k E_k(x)    g = p on S, divided by its sum if renormalize and top_k > 1; Switch,
//                                        top_k 1, keeps the plain probability: a gate of 1 has no gradient
//
// capacity_factor c > 0: in training each expert takes its first ceil(c tokens top_k / N) assignments of a
// pass, in the order of the tokens; the others contribute 0. In evaluation nothing is dropped, so that an
// image's output does not depend on its batch.
//
// Losses of a pass in training, each times its coefficient:
//   balance_loss  N sum_e f_e P_e; f: fraction of the assignments (before drops, constant), P: mean of p. 1
//                 when balanced (Fedus et al. 2022, equation 4, with f over all top_k choices)
//   z_loss        mean of (log sum exp R x)^2 (Zoph et al. 2022, ST-MoE)
//
// bias_balance u > 0 (Wang et al. 2024, as in DeepSeek-V3, there with sigmoid scores): after each update
// b_e += u sign(mean load - load_e), loads counted over the passes of the step. b chooses experts and is in
// no gate; it is a buffer of the module, `selection_bias`.
#pragma once
#include <memory>

#include "nn/dispatch.h"
#include "nn/experts.h"
#include "nn/ffn_config.h"

namespace exfusion {

class TopkFfn : public FeedForward {
 public:
  TopkFfn(const FfnConfig& config, std::int64_t dim, std::int64_t hidden, std::int64_t ffn);
  at::Tensor forward(const at::Tensor& x) override;
  void draw_parameters(std::uint64_t seed, std::int64_t ffn) override;
  void begin_pass(const PassPosition& position) override;
  at::Tensor auxiliary_loss() const override { return auxiliary_loss_; }
  std::span<std::int64_t> step_counts() override;
  void after_update(double progress) override;
  std::optional<FfnTensors> dense_form() const override { return std::nullopt; }
  double forward_flops(std::int64_t tokens) const override;

  // The parts of forward, for rows x [tokens, dim] in evaluation mode. What lies between them may be changed:
  // a logit of -inf takes an expert out, other gates weight outputs differently.
  struct Routing {
    at::Tensor probabilities;  // [tokens, experts] fp32
    at::Tensor chosen, gates;  // [tokens, top_k]: experts (int64), the first choice first, and their g
  };
  at::Tensor router_logits(const at::Tensor& x) const { return router_->forward(x); }  // [tokens, experts]
  Routing route(const at::Tensor& logits) const;
  at::Tensor combine(const at::Tensor& x, const Routing& routing) const;  // -> [tokens, dim]
  // Outputs of the chosen experts [tokens, n], any n, before their gates: [tokens, n, dim].
  at::Tensor outputs(const at::Tensor& x, const at::Tensor& chosen) const;
  const FfnConfig& config() const { return config_; }
  const Router& router() const { return *router_; }
  const Experts& experts() const { return *experts_; }
  const at::Tensor& selection_bias() const { return selection_bias_; }  // [experts]; undefined: off

 private:
  at::Tensor outputs(const at::Tensor& x, const at::Tensor& chosen, const Dispatch& dispatch) const;
  void record_pass(const at::Tensor& logits, const at::Tensor& probabilities, const Dispatch& dispatch);

  FfnConfig config_;
  std::shared_ptr<Router> router_;
  std::shared_ptr<Experts> experts_;
  at::Tensor selection_bias_;  // [experts]; undefined: off
  at::Tensor auxiliary_loss_;
  std::vector<std::int64_t> loads_;  // of the step so far
  std::function<void(std::vector<double>&)> sum_over_ranks_;
};

}  // namespace exfusion
