// Noise on the weights of the experts in training: one way to make equal experts differ (docs/theory.md).
#pragma once
#include <cstdint>
#include <span>

#include "fusion/fusion_config.h"

namespace exfusion {

// Replaces `a` by the weights that FFN number `ffn` uses in its place in step `step`; false if this step has
// no noise and a stays. The sum of absolute values and the signs are kept.
//   expert_dropout: in this fraction of steps each expert is left out with probability 1/2, one at least kept
//   dirichlet:      |a| is drawn from Dirichlet(dirichlet N |a| / sum |a|), whose mean is |a|; large: near a
bool add_weight_noise(const FusionConfig& config, std::span<float> a, std::uint64_t seed, std::int64_t step,
                      std::int64_t ffn);

}  // namespace exfusion
