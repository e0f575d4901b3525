// The matrix products of a linear layer and its gradients, each by the library that is fastest at them:
// our own in bf16 where a processor has AVX512-BF16 but no AMX (bf16_matmul.h), otherwise oneDNN where
// libtorch has it (MKL's fp32 kernels reach half of its speed on AMD processors and the same on Intel's).
// fp32 or bf16, on any device; all matrices two-dimensional.
#pragma once
#include <ATen/core/Tensor.h>

namespace exfusion {

// x W^T + b: x [rows, in], weight [out, in], bias [out] or undefined -> [rows, out]
at::Tensor linear_product(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);

// dL/dx = g W: g [rows, out], weight [out, in] -> [rows, in]
at::Tensor linear_input_gradient(const at::Tensor& g, const at::Tensor& weight);

// dL/dW = g^T x in fp32: g [rows, out], x [rows, in] -> [out, in]
at::Tensor linear_weight_gradient(const at::Tensor& g, const at::Tensor& x);

// dL/db in fp32, the sum of g [rows, out] over rows -> [out]
at::Tensor linear_bias_gradient(const at::Tensor& g);

}  // namespace exfusion
