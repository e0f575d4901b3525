// Launches of the fused point-wise kernels: pointers are device memory, `stream` is a cudaStream_t; they
// neither allocate nor wait. No torch here. Only in a build with CUDA.
#pragma once
#include <cstdint>

#include "nn/bias_gelu_walk.h"
#include "nn/residual_norm_walk.h"

namespace exfusion {

void bias_gelu_cuda(std::int64_t rows, const BiasGelu& work, void* stream);
void bias_gelu_gradient_cuda(std::int64_t rows, const BiasGeluGradient& work, void* stream);
void residual_norm_cuda(const ResidualNorm& work, void* stream);
void residual_norm_gradient_cuda(const ResidualNormGradient& work, void* stream);
void norm_parameter_gradient_cuda(const NormParameterGradient& work, void* stream);

}  // namespace exfusion
