// The N experts beside one FFN. The bank owns their weights and moments and writes the fused weights W =
// sum_k a_k W_k into the FFN's own parameters; the model knows nothing of it. (Our reading of ExFusion's
// static, learned and memory weights; the form is reconstructed, docs/theory.md.)
//
// Between steps W always is the collapsed FFN: fused with weights that depend on no input and hold no noise.
#pragma once
#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "fusion/bank_shard.h"
#include "fusion/fused_update.h"
#include "fusion/fusion_config.h"
#include "fusion/router_memory.h"
#include "io/safetensors.h"
#include "io/tensor_part.h"
#include "nn/feed_forward.h"
#include "optim/adamw.h"
#include "optim/flat_parameters.h"

namespace exfusion {

class ExpertBank {
 public:
  // From `first_slot` on lie the FFN's tensors (kFfnTensors) in `parameters`; `ffn` is its index in the
  // model. Draws the experts by config.init and fuses them into the FFN (unless it keeps_source). With
  // `exchange` it keeps this rank's part of them if they are sharded; every rank calls the same functions.
  ExpertBank(const FusionConfig& config, FlatParameters& parameters, std::size_t first_slot, std::string name,
             std::int64_t ffn, std::uint64_t seed, const GradientExchange* exchange = nullptr,
             bool deterministic = false);
  void fuse();  // writes W = sum_k a_k W_k into the FFN

  // A step: begin, forward and backward passes with see_input before the FFN's weights are used (memory
  // weights need it; x [n, tokens, dim]), then update or, if the step is skipped, abandon_step.
  void begin_step(std::int64_t step, std::int64_t samples);
  void see_input(const at::Tensor& x);
  // One optimizer step from G, the flat gradients of W times gradient_scale: dL/dW_k = a_k G, dL/da_k =
  // <G, W_k>. Updates what decides a, and in one walk the experts (AdamW) and the next W.
  void update(const AdamWConfig& config, double lr, double weights_lr, std::int64_t update,
              float gradient_scale);
  // The same in parts, between which ranks may add up: of sharded experts the numbers that make the prices,
  // each bank's from the front, and the router's gradient. Other ranks' W has come after finish_gather.
  void append_prices(std::vector<double>& numbers) const;
  void update_experts(const AdamWConfig& config, double lr, double weights_lr, std::int64_t update,
                      float gradient_scale, std::span<double>& prices);
  void update_router(const AdamWConfig& config, double weights_lr, std::int64_t update, float gradient_scale);
  void finish_gather() { shard_.finish_gather(parameters_); }
  void abandon_step();  // nothing has changed

  // Whether training's forward pass uses other weights than the collapse weights (noise, blend, routed).
  bool differs_in_training() const;
  // Between the two, forward passes use the weights that training would use in step `step` for their input.
  void begin_preview(std::int64_t step);
  void end_preview();

  const std::string& name() const { return name_; }   // "blocks.0.mlp"
  const std::vector<float>& a() const { return a_; }  // [N], the collapse weights that made W
  // [N] c_k = dL/da_k of the last update, and the weights of the forward pass that they belong to.
  const std::vector<double>& prices() const { return prices_; }
  const std::vector<float>& priced_weights() const { return priced_; }
  std::int64_t experts() const { return static_cast<std::int64_t>(a_.size()); }
  RouterMemory* router() const { return router_.get(); }  // null unless weights: memory
  const BankShard& shard() const { return shard_; }
  bool routes_in_step() const { return config_.routes_in_step(); }  // blend, routed
  bool needs_input() const { return router_ != nullptr; }
  // [N, …] in the order of kFfnTensors, [N, size] of a shard; expert k's start, on the CPU (NaN: not known).
  const FfnTensors& expert_tensors() const { return experts_; }
  FfnTensors initial_tensors(std::int64_t k) const;
  // The experts were written from outside: fuses them. Where they started is not known then.
  void experts_loaded();

  // For checkpoints; views, so that copying into them restores.
  TensorParts expert_parts() const;  // NAME.fc1.weight [N, hidden, dim], …, NAME.a [N] (F32), the router's
  // exp_avg.NAME.fc1.weight [N, …] (without the N where moments are shared), …; for learned weights NAME.z,
  // its moments (F64); the router's; with `from` the FFN it started from, start.NAME.fc1.weight, …
  TensorParts optimizer_parts() const;
  NamedTensors expert_state() const;  // the values of these parts
  NamedTensors optimizer_state() const;
  // After restoring: takes a from the state and fuses. Throws CheckpointError if a is not what z (learned),
  // the memory, or 1/N (static) gives.
  void restored();

 private:
  enum class Phase { collapsed, step, preview };
  std::vector<float> collapse_weights() const;
  void set_weights(std::span<const float> a);
  bool holds_source() const;
  void collapse();
  void fuse_with(std::span<const float> a);
  void use(std::span<const float> a);
  ExpertTensors<float> expert_tensors_of(std::size_t tensor, std::span<float* const> w) const;
  void compute_prices(std::span<double>& numbers);
  void update_logits(const AdamWConfig& config, double lr, std::int64_t update, float gradient_scale);

  FusionConfig config_;
  FlatParameters& parameters_;
  std::size_t first_slot_;
  BankShard shard_;
  std::string name_;
  std::int64_t ffn_, step_ = 0;
  std::uint64_t seed_;
  FfnTensors experts_;                       // [N, …]
  FfnTensors exp_avg_, exp_avg_sq_;          // [N, …], or without the N: shared
  FfnTensors start_;                         // the FFN's own tensors at the start; only with `from`
  at::Tensor z_, z_exp_avg_, z_exp_avg_sq_;  // [N] double; learned weights only
  std::unique_ptr<RouterMemory> router_;     // memory weights only
  at::Tensor a_state_;                       // [N] fp32, the tensor form of a_
  // [N] each, never resized: collapse weights; of this step's forward pass; of prices_; on their way there.
  std::vector<float> a_, used_, priced_, next_;
  std::vector<double> prices_;
  Phase phase_ = Phase::collapsed;
  bool unfused_ = false;  // W still is the FFN it started from: no update yet (keeps_source)
};

}  // namespace exfusion
