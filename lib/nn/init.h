// Initial values of parameters, drawn by counter: they depend on the place of the draw and on nothing else.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

#include "core/random.h"

namespace exfusion {

// Where a tensor's numbers come from (core/random.h). The layer counts blocks of the tensor, so that threads
// can share it.
struct InitialDraw {
  std::uint64_t seed;
  Draw what;
  std::int64_t epoch, sample;
};

// Fill a contiguous fp32 tensor on the CPU. Normal with mean 0; it never leaves +-9 std, so timm's truncation
// at +-2 (100 std for its std of 0.02) is the same distribution. Uniform in [-bound, bound).
void fill_normal(const at::Tensor& tensor, double std, const InitialDraw& draw);
void fill_uniform(const at::Tensor& tensor, double bound, const InitialDraw& draw);

}  // namespace exfusion
