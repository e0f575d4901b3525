// Drop path, or stochastic depth (Huang et al. 2016), per sample and residual branch.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

namespace exfusion {

// [samples, rates] fp32: 0 with probability rate, otherwise 1 / (1 - rate). `samples` are indices in the data
// set: a factor depends on (seed, epoch, sample, branch) only, so not on the batch it is in. Undefined when
// all rates are 0. rates in [0, 1).
at::Tensor drop_path_factors(const std::vector<double>& rates, std::uint64_t seed, std::int64_t epoch,
                             std::span<const std::int64_t> samples);

}  // namespace exfusion
