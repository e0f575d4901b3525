#include "nn/gelu_kernel.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <vector>

#include "nn/gelu_element.h"

namespace exfusion {
namespace {

TEST(GeluElement, IsWithinThreeTenMillionthsOfTheFormula) {
  for (double x = -12.0; x <= 12.0; x += 1e-3) {
    const auto rounded = static_cast<float>(x);
    const double exact = static_cast<double>(rounded), scale = std::max(1.0, std::abs(exact));
    const double cdf = 0.5 * std::erfc(-exact / std::sqrt(2.0)),
                 density = std::exp(-0.5 * exact * exact) / std::sqrt(2.0 * M_PI);
    const Gelu found = gelu_element(rounded);
    ASSERT_NEAR(found.value, exact * cdf, 3e-7 * scale) << x;
    ASSERT_NEAR(found.derivative, cdf + exact * density, 3e-7 * scale) << x;
  }
}

TEST(ExpElement, IsWithinTwoUnitsInTheLastPlace) {
  for (double x = -87.0; x <= 88.0; x += 1e-3) {
    const auto rounded = static_cast<float>(x);
    const double exact = std::exp(static_cast<double>(rounded));
    ASSERT_NEAR(exp_element(rounded), exact, exact * 2.4e-7) << x;
  }
  EXPECT_TRUE(std::isnan(exp_element(NAN)));  // a broken score must not become a number
  EXPECT_EQ(exp_element(-INFINITY), 0.0f);
}

TEST(GeluElement, HasItsLimitsFarOut) {
  for (const float x : {14.0f, 1e4f, 1e20f, 3e38f}) {
    EXPECT_EQ(gelu_element(x).value, x);
    EXPECT_EQ(gelu_element(x).derivative, 1.0f);
    EXPECT_EQ(gelu_element(-x).value, 0.0f);
    EXPECT_EQ(gelu_element(-x).derivative, 0.0f);
  }
  EXPECT_TRUE(std::isnan(gelu_element(NAN).value));
  EXPECT_TRUE(std::isnan(gelu_element(NAN).derivative));
}

// Odd sizes: whole vectors and a rest.
constexpr std::int64_t kRows = 101, kColumns = 67;

std::vector<float> ramp(double step) {
  std::vector<float> x(kRows * kColumns);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(3.0 * std::sin(step * double(i)));
  return x;
}

TEST(GeluKernel, BackwardGivesDerivativeValueAndColumnSums) {
  const std::vector<float> x = ramp(0.7), dy = ramp(1.3);
  std::vector<float> dx = dy, y(x.size()), sums(kColumns), forward(x.size());
  gelu_backward(kRows, kColumns, x.data(), dx.data(), y.data(), sums.data());
  gelu<float>(kRows * kColumns, x.data(), forward.data());
  EXPECT_EQ(y, forward);
  for (std::int64_t column = 0; column < kColumns; ++column) {
    double sum = 0.0;
    for (std::int64_t row = 0; row < kRows; ++row) {
      const auto i = static_cast<std::size_t>(row * kColumns + column);
      EXPECT_NEAR(dx[i], gelu_element(x[i]).derivative * dy[i], 1e-6);
      sum += static_cast<double>(dx[i]);
    }
    EXPECT_NEAR(sums[static_cast<std::size_t>(column)], sum, 1e-4);
  }
}

TEST(GeluKernel, RoundsToBf16Once) {
  const std::vector<float> x = ramp(0.9);
  std::vector<Bfloat16> narrow(x.size()), y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) narrow[i] = from_float<Bfloat16>(x[i]);
  gelu(kRows * kColumns, narrow.data(), y.data());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const float exact = gelu_element(to_float(narrow[i])).value;
    EXPECT_NEAR(to_float(y[i]), exact, std::abs(exact) / 256.0f);
  }
}

TEST(ColumnSums, HaveTheSameBitsForAnyNumberOfThreads) {
  const std::vector<float> x = ramp(0.3);
  std::vector<float> one(kColumns), three(kColumns);
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  column_sums(kRows, kColumns, x.data(), one.data());
  omp_set_num_threads(3);
  column_sums(kRows, kColumns, x.data(), three.data());
  omp_set_num_threads(threads);
  EXPECT_EQ(one, three);
}

}  // namespace
}  // namespace exfusion
