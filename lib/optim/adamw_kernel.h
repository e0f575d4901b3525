// The AdamW walk over memory. No torch here.
#pragma once
#include <cstdint>

#include "optim/adamw_element.h"

namespace exfusion {

// One AdamW update of n elements with gradient scale * g. The arrays do not overlap. T: float, double. The
// same bits for any thread count and instruction set. `bf16` [n], if given, receives the new weights rounded
// (core/bfloat16.h) while they are in the cache.
template <class T>
void adamw_update(std::int64_t n, T* w, T* m, T* v, const T* g, T scale, const AdamWScalars<T>& scalars,
                  std::uint16_t* bf16 = nullptr);

}  // namespace exfusion
