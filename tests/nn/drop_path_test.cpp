#include "nn/drop_path.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <numeric>

namespace exfusion {
namespace {

TEST(DropPathFactors, AreUndefinedWhenNothingIsDropped) {
  const std::vector<std::int64_t> samples = {1, 2};
  EXPECT_FALSE(drop_path_factors({0.0, 0.0}, 1, 0, samples).defined());
  EXPECT_TRUE(drop_path_factors({0.0, 0.1}, 1, 0, samples).defined());
}

TEST(DropPathFactors, DependOnTheSampleNotOnTheBatch) {
  const std::vector<double> rates = {0.0, 0.2, 0.5, 0.8};
  const std::vector<std::int64_t> batch = {7, 3, 900, 4}, other = {900, 11, 7};
  const auto a = drop_path_factors(rates, 5, 2, batch), b = drop_path_factors(rates, 5, 2, other);
  EXPECT_TRUE(at::equal(a[0], b[2]));
  EXPECT_TRUE(at::equal(a[2], b[0]));
  EXPECT_TRUE(at::equal(a, drop_path_factors(rates, 5, 2, batch)));
}

TEST(DropPathFactors, ChangeWithSeedEpochSampleAndBranch) {
  std::vector<std::int64_t> samples(200);
  std::iota(samples.begin(), samples.end(), 0);
  const auto factors = drop_path_factors({0.5, 0.5}, 1, 0, samples);
  EXPECT_FALSE(at::equal(factors, drop_path_factors({0.5, 0.5}, 2, 0, samples)));
  EXPECT_FALSE(at::equal(factors, drop_path_factors({0.5, 0.5}, 1, 1, samples)));
  EXPECT_FALSE(at::equal(factors.select(1, 0), factors.select(1, 1)));
}

TEST(DropPathFactors, DropAtTheRateAndKeepTheMean) {
  std::vector<std::int64_t> samples(20000);
  std::iota(samples.begin(), samples.end(), 0);
  const std::vector<double> rates = {0.0, 0.1, 0.4};
  const auto factors = drop_path_factors(rates, 9, 0, samples);
  EXPECT_EQ(factors.scalar_type(), at::kFloat);
  EXPECT_TRUE(at::equal(factors.select(1, 0), at::ones({20000})));
  for (std::int64_t branch = 1; branch < 3; ++branch) {
    const auto factor = factors.select(1, branch);
    const double rate = rates[static_cast<std::size_t>(branch)];
    const auto kept = static_cast<float>(1.0 / (1.0 - rate));
    EXPECT_TRUE(((factor == 0.0) | (factor == kept)).all().item<bool>());
    EXPECT_NEAR((factor == 0.0).to(at::kDouble).mean().item<double>(), rate, 0.015);  // 4 standard errors
  }
}

}  // namespace
}  // namespace exfusion
