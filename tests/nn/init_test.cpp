#include "nn/init.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>

namespace exfusion {
namespace {

constexpr std::int64_t kSize = 300001;  // more than one block, and a part of one

at::Tensor normal(const InitialDraw& draw) {
  const auto values = at::empty({kSize});
  fill_normal(values, 0.02, draw);
  return values;
}

TEST(Init, IsTheSameForEveryNumberOfThreads) {
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const auto one = normal({3, Draw::init, 0, 4});
  at::set_num_threads(2);
  const auto two = normal({3, Draw::init, 0, 4});
  at::set_num_threads(threads);
  EXPECT_TRUE(at::equal(one, two));
}

TEST(Init, ChangesWithEveryPartOfItsPlace) {
  const auto values = normal({3, Draw::init, 0, 4});
  EXPECT_FALSE(at::equal(values, normal({4, Draw::init, 0, 4})));
  EXPECT_FALSE(at::equal(values, normal({3, Draw::expert_init, 0, 4})));
  EXPECT_FALSE(at::equal(values, normal({3, Draw::init, 1, 4})));
  EXPECT_FALSE(at::equal(values, normal({3, Draw::init, 0, 5})));
}

TEST(Init, NormalHasTheMomentsOfANormal) {
  const auto values = normal({1, Draw::init, 0, 0}).to(at::kDouble) / 0.02;
  const double n = static_cast<double>(kSize);
  EXPECT_NEAR(values.mean().item<double>(), 0.0, 4 / std::sqrt(n));
  EXPECT_NEAR(values.pow(2).mean().item<double>(), 1.0, 4 * std::sqrt(2 / n));
  EXPECT_NEAR(values.pow(4).mean().item<double>(), 3.0, 4 * std::sqrt(96 / n));
  EXPECT_LT(values.abs().max().item<double>(), 9.0);
  // No two blocks, nor neighbours, are the same numbers.
  const auto shifted = (values.narrow(0, 0, kSize - 16384) * values.narrow(0, 16384, kSize - 16384)).mean();
  EXPECT_NEAR(shifted.item<double>(), 0.0, 5 / std::sqrt(n));
}

TEST(Init, UniformFillsItsRange) {
  const auto values = at::empty({kSize});
  fill_uniform(values, 0.25, {1, Draw::init, 0, 0});
  EXPECT_GE(values.min().item<float>(), -0.25f);
  EXPECT_LE(values.max().item<float>(), 0.25f);
  EXPECT_NEAR(values.min().item<double>(), -0.25, 1e-4);
  EXPECT_NEAR(values.max().item<double>(), 0.25, 1e-4);
  EXPECT_NEAR(values.to(at::kDouble).std().item<double>(), 0.25 / std::sqrt(3.0), 1e-3);
}

}  // namespace
}  // namespace exfusion
