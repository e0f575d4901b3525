// The weights of `weights: learned`: one number z_k per expert and FFN.
#pragma once
#include <ATen/core/Tensor.h>

#include <span>

#include "fusion/fusion_config.h"

namespace exfusion {

// a [N] from z [N] double: softmax(z / temperature), or z itself.
void learned_weights(const FusionConfig& config, const at::Tensor& z, std::span<float> a);

// dL/dz from prices c_k = dL/da_k. For the softmax, as a_k sum_j a_j (c_k - c_j) / temperature: the weights
// sum to 1, and for equal prices it is exactly 0.
void logit_gradients(const FusionConfig& config, std::span<const float> a, std::span<const double> prices,
                     std::span<double> gradient);

}  // namespace exfusion
