// `fusion.materialize: false`: static experts without the experts. Under AdamW and a_k = 1/N their mean W
// moves exactly as dense training with eps N times as large, and their differences from it change by weight
// decay alone (derivation: docs/theory.md). So W is trained, and the experts can be had at any time.
#pragma once
#include <cstdint>

#include "fusion/fusion_config.h"
#include "nn/feed_forward.h"

namespace exfusion {

// Writes the mean of the experts' initial values into the tensors of FFN number `ffn`, with the bits of their
// first fusion. `dense` holds the dense model's initial values.
void start_at_mean(const FusionConfig& config, const FfnTensors& dense, std::uint64_t seed, std::int64_t ffn);

// W_k = W + p (W_k(0) - W(0)) for each expert, [N, …] in the order of kFfnTensors. `trained` is W, p is
// `decay_product` (of 1 - lr weight_decay over all updates) for the two matrices and 1 for the two biases,
// which do not decay.
FfnTensors recovered_experts(const FusionConfig& config, const FfnTensors& trained, std::uint64_t seed,
                             std::int64_t ffn, double decay_product);

}  // namespace exfusion
