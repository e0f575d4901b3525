// The kernels of this layer by device: the one place that chooses between the CPU's and CUDA's. CUDA's run on
// the device's current stream.
#pragma once
#include <c10/core/Device.h>

#include <cstdint>
#include <span>

#include "optim/adamw_element.h"

namespace exfusion {

// The current stream of a CUDA device as a cudaStream_t.
void* current_stream(c10::Device device);

// As adamw_update (optim/adamw_kernel.h), of arrays that lie on `device`. CUDA's kernel writes no bf16.
void adamw_update_on(c10::Device device, std::int64_t n, float* w, float* m, float* v, const float* g,
                     float scale, const AdamWScalars<float>& scalars, std::uint16_t* bf16);

// As inner_products and sum_of_squares (optim/reduction.h). The results are the host's: a CUDA device is
// waited for.
void inner_products_on(c10::Device device, const float* g, std::span<const float* const> w, std::int64_t n,
                       std::span<double> result);
double sum_of_squares_on(c10::Device device, const float* x, std::int64_t n);

}  // namespace exfusion
