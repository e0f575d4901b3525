// Modules with values that hide nothing: biases and norms far from 0 and 1, different in every place.
#pragma once
#include <ATen/ATen.h>
#include <torch/nn/module.h>

namespace exfusion {

inline void set_random_values(torch::nn::Module& module, std::uint64_t seed) {
  const at::NoGradGuard no_grad;
  auto generator = at::detail::createCPUGenerator(seed);
  for (const auto& parameter : module.parameters()) parameter.normal_(0.2, 0.3, generator);
}

inline at::Tensor random_values(at::IntArrayRef shape, std::uint64_t seed) {
  return at::randn(shape, at::detail::createCPUGenerator(seed));
}

inline double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

}  // namespace exfusion
