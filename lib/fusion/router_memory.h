// The weights of `weights: memory` (our reading of ExFusion's router and momentum memory bank; reconstructed,
// docs/theory.md): a linear router R on the FFN's input, p_t = softmax(R x_t / temperature) per token, r =
// mean of p over the tokens of the step's global batch, m = momentum m + (1 - momentum) r, starting at 1/N.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "fusion/fusion_config.h"
#include "io/safetensors.h"
#include "optim/adamw.h"

namespace exfusion {

class RouterMemory {
 public:
  // For an FFN of width `dim`, number `ffn` of the model.
  RouterMemory(const FusionConfig& config, std::int64_t dim, std::uint64_t seed, std::int64_t ffn);

  // Starts a step whose global batch has `samples` samples.
  void begin_step(std::int64_t samples);
  // Adds the FFN's input for some of these samples, x [n, tokens, dim], to r and to its Jacobian.
  void add(const at::Tensor& x);
  // The weights that `forward: blend` (m_t) or `routed` (r_t) use in this step; every sample was added.
  void weights_in_step(std::span<float> a) const;
  // What they would be for the input x alone; changes nothing.
  void weights_for(const at::Tensor& x, std::span<float> a) const;

  void next_memory(std::span<float> m) const;  // m after this step
  // What the step has added so far: r [N] double and its Jacobian [N, N, dim]. Views, for sums over ranks: r
  // must be that of all samples before it is used; the Jacobian may stay this rank's part if the gradient is
  // summed.
  at::Tensor step_routing() const { return routing_; }
  at::Tensor step_jacobian() const { return jacobian_; }
  // Ends a step, in two parts: the router's gradient from prices c_k = dL/da_k, by the Jacobian, which for
  // `forward: memory` is that of the step before, since its a is the memory of the step before; then AdamW
  // with that gradient times gradient_scale, and m.
  void compute_gradient(std::span<const double> prices);
  void update(const AdamWConfig& config, double lr, std::int64_t update, float gradient_scale);

  std::vector<float> memory() const;                               // [N], sums to 1
  const at::Tensor& router_gradient() const { return gradient_; }  // [N, dim], of the last update, unscaled
  at::Tensor last_jacobian() const { return last_jacobian_; }      // `forward: memory` only

  // For checkpoints; views. NAME.router.weight [N, dim] F32, NAME.memory [N] F64.
  NamedTensors expert_state(const std::string& name) const;
  // The router's moments and, for `forward: memory`, NAME.router.jacobian [N, N, dim]: dr_j/dR_k of the last
  // step.
  NamedTensors optimizer_state(const std::string& name) const;
  // After restoring. Throws CheckpointError if the memory is no distribution.
  void restored(const std::string& name) const;

 private:
  double blended(const double* r, std::size_t k) const;  // momentum m + (1 - momentum) r of expert k
  void weights_from(const double* r, std::span<float> a) const;
  void loss_gradient(std::span<const double> prices, std::span<double> gradient) const;

  FusionConfig config_;
  at::Tensor router_, exp_avg_, exp_avg_sq_, gradient_;  // [N, dim]
  at::Tensor memory_, routing_;                          // [N] double: m of the last step, r of this one
  at::Tensor last_jacobian_, jacobian_;                  // [N, N, dim]: of the last step, of this one
  std::int64_t samples_ = 0;
};

}  // namespace exfusion
