// Steps away from the fused weights W = sum_k a_k W_k of one FFN: those that leave an expert out, and random
// ones like them.
#pragma once
#include "observe/fused_sets.h"

namespace exfusion {

// From W to (W - a W_k) / (1 - a) = W - a / (1 - a) D_k, double; D [N, …] (offsets of fused_sets.h). a is not
// 1. Exactly 0 for copies of one expert.
FfnTensors step_without(const FfnTensors& offsets, double a, std::int64_t k);

// Number `repetition` of the random steps of a block: each tensor with the singular values of `step`'s (so
// with its norm and rank), between random orthonormal directions; a bias in a random direction.
FfnTensors random_step_like(const FfnTensors& step, std::int64_t block, std::int64_t repetition);

// w + step, fp32.
FfnTensors stepped(const FfnTensors& w, const FfnTensors& step);

// `tensors` times one factor that gives them the norm of w over all four.
FfnTensors scaled_to(const FfnTensors& tensors, const FfnTensors& w);

}  // namespace exfusion
