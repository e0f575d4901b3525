// Products of bf16 matrices with sums in fp32, for processors with AVX512-BF16 but without AMX. There they
// come closer to the processor's peak than oneDNN's and MKL's: the gradient of the weights by a fifth, the
// others by 5 to 10 %. Every element is one sum over k in order: the same bits for any number of threads. All
// matrices are contiguous. No torch here.
#pragma once
#include <cstdint>

#include "core/bfloat16.h"

namespace exfusion {

// Whether this processor is one of them; nothing else here may be called on others.
bool has_bf16_matmul();

// c [m, n] = a [m, k] b^T + bias, with b [n, k], bias [n] or null; k even
void bf16_product_transposed(std::int64_t m, std::int64_t n, std::int64_t k, const Bfloat16* a,
                             const Bfloat16* b, const Bfloat16* bias, Bfloat16* c);

// c [m, n] = a [m, k] b [k, n]; k even
void bf16_product(std::int64_t m, std::int64_t n, std::int64_t k, const Bfloat16* a, const Bfloat16* b,
                  Bfloat16* c);

// c [m, n] = a^T b, with a [k, m], b [k, n]
void bf16_transposed_product(std::int64_t m, std::int64_t n, std::int64_t k, const Bfloat16* a,
                             const Bfloat16* b, float* c);

}  // namespace exfusion
