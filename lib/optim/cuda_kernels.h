// The CUDA twins of adamw_kernel.h and reduction.h. Pointers are device memory, `stream` is a cudaStream_t.
// Launches neither allocate nor wait. Bits as on the CPU: the same arithmetic, compiled without contraction.
// No torch here. A build without CUDA has these too; they throw Failure.
#pragma once
#include <cstdint>
#include <span>

#include "optim/adamw_element.h"

namespace exfusion {

bool built_with_cuda();

void adamw_update_cuda(std::int64_t n, float* w, float* m, float* v, const float* g, float scale,
                       const AdamWScalars<float>& scalars, void* stream);

// result[k] = <g, w[k]> for all k < kMaxProducts, with every product in double (`in_double`, as
// sum_of_squares has it) or as inner_products adds them; `sums` is room for w.size() * ceil(n /
// kReductionBlock) numbers. n >= 1.
void inner_products_cuda(const float* g, std::span<const float* const> w, std::int64_t n, bool in_double,
                         double* sums, double* result, void* stream);

}  // namespace exfusion
