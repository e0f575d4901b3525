// References for FFNs with experts, in double precision: plain loops over tokens, gradients by autograd.
#pragma once
#include <ATen/ATen.h>

#include <map>
#include <string>

#include "module_values.h"
#include "nn/feed_forward.h"

namespace exfusion {

// Sizes of the FFNs under test.
constexpr std::int64_t kDim = 6, kHidden = 9, kImages = 3, kTokens = 5, kExperts = 4;

using SlowTensors = std::map<std::string, at::Tensor>;  // a module's parameters as double leaves

inline SlowTensors slow_copies(const torch::nn::Module& module) {
  SlowTensors copies;
  for (const auto& item : module.named_parameters())
    copies[item.key()] = item.value().detach().to(at::kDouble).set_requires_grad(true);
  return copies;
}

// E_k(x) of one token [dim].
inline at::Tensor slow_expert(const SlowTensors& t, std::int64_t k, const at::Tensor& x) {
  const at::Tensor z = t.at("experts.fc1.weight")[k].mv(x) + t.at("experts.fc1.bias")[k];
  const at::Tensor active = 0.5 * z * (1.0 + (z / std::sqrt(2.0)).erf());
  return t.at("experts.fc2.weight")[k].mv(active) + t.at("experts.fc2.bias")[k];
}

// Gradients of all parameters after sum(y * weight) + extra, ours against the reference's.
inline void expect_same_gradients(FeedForward& ffn, const at::Tensor& x, const SlowTensors& slow,
                                  const at::Tensor& slow_x, double tolerance) {
  EXPECT_LT(largest_difference(x.grad(), slow_x.grad()), tolerance) << "x";
  for (const auto& item : ffn.named_parameters()) {
    ASSERT_TRUE(item.value().grad().defined()) << item.key();
    const at::Tensor& expected = slow.at(item.key()).grad();
    EXPECT_LT(largest_difference(item.value().grad(),
                                 expected.defined() ? expected : at::zeros_like(slow.at(item.key()))),
              tolerance)
        << item.key();
  }
}

}  // namespace exfusion
