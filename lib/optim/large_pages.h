// Memory for what every step walks over from end to end: experts, moments, the flat buffers.
#pragma once
#include <ATen/core/Tensor.h>

namespace exfusion {

// An fp32 tensor of zeros. On the CPU, from 2 MiB on, it asks Linux for large pages (madvise): fewer
// page-table look-ups and longer runs for the hardware's prefetching, near a tenth of the update pass. Where
// the kernel has none, ordinary pages.
at::Tensor zeros_in_large_pages(at::IntArrayRef shape, c10::Device device = at::kCPU);

}  // namespace exfusion
