// The values from which the experts of an FFN start.
//
//   independent         own draws, expert 0 that of the dense model
//   independent_scaled  the same over sqrt(sum_k a_k^2): the fused weights have the std of one draw
//   copy                the FFN's own tensors
//   copy_noise          these plus normal noise of std `noise` times the std of the tensor (for a bias: of
//   its
//                       layer's weight)
//   drop                these with round(drop_ratio * hidden) hidden units, others for each expert, drawn
//   anew
//                       (Drop-Upcycling, Nakamura et al. 2025): the units' rows of fc1.weight, entries of
//                       fc1.bias and columns of fc2.weight from normals with the mean and std of what they
//                       replace in that tensor. `permute` first puts the hidden units into an own order
//   split               the hidden units in N contiguous parts, nearly equal; expert k holds the k-th part
//   over
//                       a_k and zeros elsewhere, fc2.bias over sum_k a_k: the fused FFN is the FFN
//   stored              (not a word of recipes) the experts of the folder `from`: read_experts puts them in
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "fusion/fusion_config.h"
#include "nn/feed_forward.h"

namespace exfusion {

class Section;

// Reads the keys of `fusion` that say how experts start: from, init, noise, drop_ratio, permute. After
// parse_weights: whether copies may be equal depends on what the weights do.
void parse_expert_init(Section& section, FusionConfig& config);

// Why experts that start like this would stay identical for ever, so that training would be dense training;
// "" if they can separate.
std::string separation_problem(const FusionConfig& config);

// Whether the FFN keeps its own tensors until the first update, because the fused ones differ from them by
// rounding alone.
bool keeps_source(const FusionConfig& config);

// The tensors from which expert k of FFN number `ffn` starts. `dense`: the FFN's own tensors; `a` [N]: the
// weights that fuse the experts at the start, none of them 0. For `stored`, copies.
FfnTensors initial_expert(const FusionConfig& config, const FfnTensors& dense, std::uint64_t seed,
                          std::int64_t ffn, std::int64_t k, const std::vector<float>& a);

}  // namespace exfusion
