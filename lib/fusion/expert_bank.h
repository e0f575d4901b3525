// The N experts beside one FFN. The bank owns their weights and moments and writes the fused weights W =
// sum_k a_k W_k into the FFN's own parameters; the model knows nothing of it. (Our reading of ExFusion's
// static and learned weights; the form is reconstructed, method.md 1.2.)
#pragma once
#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "fusion/fusion_config.h"
#include "io/safetensors.h"
#include "optim/adamw.h"
#include "optim/flat_parameters.h"

namespace exfusion {

class ExpertBank {
 public:
  // `slots` are the FFN's four tensors (order of kFfnTensors) in `parameters`; `ffn` is its index in the
  // model. Draws the experts by config.init and fuses them into the FFN.
  ExpertBank(const FusionConfig& config, FlatParameters& parameters, std::size_t first_slot, std::string name,
             std::int64_t ffn, std::uint64_t seed);

  // Writes W = sum_k a_k W_k into the FFN.
  void fuse();

  // One optimizer step from the gradient G of the fused weights: dL/dW_k = a_k G, dL/da_k = <G, W_k>
  // (method.md 3). G is read from the flat gradients and multiplied by gradient_scale. Updates z, then in one
  // walk the experts (AdamW) and the next W.
  void update(const AdamWConfig& config, double lr, double weights_lr, std::int64_t update,
              float gradient_scale);

  const std::string& name() const { return name_; }   // "blocks.0.mlp"
  const std::vector<float>& a() const { return a_; }  // [N], the weights that made the current W
  std::int64_t experts() const { return static_cast<std::int64_t>(a_.size()); }

  // For checkpoints; views, so that copying into them restores.
  NamedTensors expert_state() const;  // NAME.fc1.weight [N, hidden, dim], …, NAME.a [N] (F32)
  NamedTensors optimizer_state()
      const;  // exp_avg.NAME.fc1.weight [N, …], …, and for learned weights NAME.z, its moments (F64)
  // After restoring: takes a from the state and fuses. Throws CheckpointError if a is not what z (learned) or
  // 1/N (static) gives.
  void restored();

 private:
  void update_weights(const AdamWConfig& config, double lr, std::int64_t update, float gradient_scale);
  void set_weights(std::vector<float> a);

  FusionConfig config_;
  FlatParameters& parameters_;
  std::size_t first_slot_;
  std::string name_;
  std::array<at::Tensor, 4> experts_, exp_avg_, exp_avg_sq_;  // [N, …]
  at::Tensor z_, z_exp_avg_, z_exp_avg_sq_;                   // [N] double; learned weights only
  at::Tensor a_state_;                                        // [N] fp32, the tensor form of a_
  std::vector<float> a_;
};

}  // namespace exfusion
