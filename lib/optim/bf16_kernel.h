// Rounding of arrays to bf16. No torch here.
#pragma once
#include <cstdint>

namespace exfusion {

// bf16[i] = bf16_element(x[i]) for n elements, on the thread that calls: for blocks that are in the cache.
// Doubles are rounded to float before. T: float, double.
template <class T>
void round_block(std::int64_t n, const T* x, std::uint16_t* bf16);

// The same over a whole array, on all threads.
void round_to_bf16(std::int64_t n, const float* x, std::uint16_t* bf16);

}  // namespace exfusion
