// GELU over arrays. T: float, Bfloat16 (arithmetic in fp32). No torch here.
#pragma once
#include <cstdint>

#include "core/bfloat16.h"

namespace exfusion {

// y[i] = gelu(x[i]) for n elements; x and y may be the same array.
template <class T>
void gelu(std::int64_t n, const T* x, T* y);

// For x, dy [rows, columns]: dx = gelu'(x) dy over dy's memory, y = gelu(x) (the forward pass need not keep
// it), and bias_gradient [columns] = the sum of dx over rows, in an order that does not depend on threads.
template <class T>
void gelu_backward(std::int64_t rows, std::int64_t columns, const T* x, T* dy, T* y, float* bias_gradient);

// sums[c] = sum over rows of x [rows, columns], in an order that does not depend on threads.
template <class T>
void column_sums(std::int64_t rows, std::int64_t columns, const T* x, float* sums);

}  // namespace exfusion
