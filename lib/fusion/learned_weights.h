// The weights of `weights: learned`: one number z_k per expert and FFN.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "fusion/fusion_config.h"

namespace exfusion {

// a from z [N] double: softmax(z / temperature), or z itself.
std::vector<float> learned_weights(const FusionConfig& config, const at::Tensor& z);

// dL/dz from prices c_k = dL/da_k. For the softmax, as a_k sum_j a_j (c_k - c_j) / temperature: the weights
// sum to 1, and for equal prices it is exactly 0.
std::vector<double> logit_gradients(const FusionConfig& config, const std::vector<float>& a,
                                    const std::vector<double>& prices);

}  // namespace exfusion
