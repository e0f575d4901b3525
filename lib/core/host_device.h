// Marks functions that a CUDA compiler builds for both sides: the arithmetic that a test checks on the CPU is
// then the arithmetic that a kernel runs.
#pragma once

#if defined(__CUDACC__)
#define EXFUSION_HOST_DEVICE __host__ __device__
#else
#define EXFUSION_HOST_DEVICE
#endif
