// Multi-head self-attention of short sequences: for each sample and head, the scores, their softmax and the
// weighted sum stay in the cache, and inputs and outputs are read and written where the projections have
// them. T: float, Bfloat16 (arithmetic in fp32). No torch here.
#pragma once
#include <cstdint>

#include "core/bfloat16.h"

namespace exfusion {

// Beyond this many tokens the scores of one head leave the cache.
inline constexpr std::int64_t kAttentionKernelTokens = 256;

struct AttentionShape {
  std::int64_t samples, tokens, heads, head_dim;
};

// qkv [samples, tokens, 3, heads, head_dim] -> output [samples, tokens, heads, head_dim]: p v with
// p = softmax(q k^T / sqrt(head_dim)), kept in probabilities [samples, heads, tokens, tokens] unless null.
template <class T>
void attention_forward(const AttentionShape& shape, const T* qkv, T* output, T* probabilities);

// d_qkv from d_output and the probabilities that the forward pass kept.
template <class T>
void attention_backward(const AttentionShape& shape, const T* qkv, const T* probabilities, const T* d_output,
                        T* d_qkv);

}  // namespace exfusion
