#include "optim/reduction.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

namespace exfusion {
namespace {

template <class T>
std::vector<T> normal_numbers(std::int64_t n, unsigned seed) {
  std::mt19937_64 bits(seed);
  std::normal_distribution<double> normal;
  std::vector<T> x(static_cast<std::size_t>(n));
  for (T& value : x) value = static_cast<T>(normal(bits));
  return x;
}

template <class T>
double inner_product(const std::vector<T>& x, const std::vector<T>& y) {
  const T* w = y.data();
  double result = 0.0;
  inner_products<T>(x.data(), std::span(&w, 1), static_cast<std::int64_t>(x.size()), std::span(&result, 1));
  return result;
}

// The documented order, written down plainly and compiled for the baseline instruction set: products group by
// group (`rows` of lanes) in T, or one by one.
template <class T>
double in_documented_order(const std::vector<T>& x, const std::vector<T>& y, std::size_t rows) {
  const auto tree = [](auto sums) {
    std::size_t width = 1;
    while (width < sums.size()) width *= 2;
    sums.resize(width);
    for (std::size_t half = width / 2; half >= 1; half /= 2) {
      for (std::size_t j = 0; j < half; ++j) sums[j] += sums[j + half];
    }
    return sums[0];
  };
  std::vector<double> blocks;
  for (std::size_t begin = 0; begin < x.size(); begin += kReductionBlock) {
    std::vector<double> lanes(kReductionLanes, 0.0);
    const std::size_t end = std::min<std::size_t>(x.size(), begin + kReductionBlock);
    std::size_t i = begin;
    for (; rows > 1 && i + rows * kReductionLanes <= end; i += rows * kReductionLanes) {
      for (std::size_t j = 0; j < kReductionLanes; ++j) {
        std::vector<T> column;
        for (std::size_t row = 0; row < rows; ++row)
          column.push_back(x[i + row * kReductionLanes + j] * y[i + row * kReductionLanes + j]);
        lanes[j] += static_cast<double>(tree(column));
      }
    }
    for (; i < end; ++i)
      lanes[(i - begin) % kReductionLanes] += static_cast<double>(x[i]) * static_cast<double>(y[i]);
    blocks.push_back(tree(lanes));
  }
  return blocks.empty() ? 0.0 : tree(blocks);
}

const std::vector<std::int64_t> kSizes = {0, 1, 15, 16, 17, 127, 128, 129, 4095, 4096, 4097, 40'000, 123'457};

// Products of a group are rounded once, then three times on their way up the tree: errors of 2^-24 each, of
// either sign.
TEST(Reduction, AgreesWithExtendedPrecision) {
  for (const std::int64_t n : kSizes) {
    const auto x = normal_numbers<float>(n, 1), y = normal_numbers<float>(n, 2);
    long double product = 0, squares = 0, spread = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      product += static_cast<long double>(x[i]) * y[i];
      spread += std::pow(static_cast<long double>(x[i]) * y[i], 2);
      squares += static_cast<long double>(x[i]) * x[i];
    }
    EXPECT_NEAR(inner_product(x, y), static_cast<double>(product),
                4 * 0x1p-24 * std::sqrt(static_cast<double>(spread)))
        << n;
    EXPECT_NEAR(sum_of_squares(x.data(), n), static_cast<double>(squares),
                1e-15 * static_cast<double>(squares))
        << n;
  }
}

TEST(Reduction, SumsWholeNumbersExactly) {
  for (const std::int64_t n : kSizes) {
    std::vector<float> x(static_cast<std::size_t>(n), 3.0f), y(static_cast<std::size_t>(n));
    for (std::int64_t i = 0; i < n; ++i) y[static_cast<std::size_t>(i)] = static_cast<float>(i);
    EXPECT_EQ(inner_product(x, y), 1.5 * static_cast<double>(n) * static_cast<double>(n - 1) + 0.0) << n;
  }
}

template <class T>
void expect_documented_order() {
  for (const std::int64_t n : kSizes) {
    const auto x = normal_numbers<T>(n, 3), y = normal_numbers<T>(n, 4);
    EXPECT_EQ(inner_product(x, y), in_documented_order(x, y, 8)) << n;
    EXPECT_EQ(sum_of_squares(x.data(), n), in_documented_order(x, x, 1)) << n;
  }
}

TEST(Reduction, HasTheBitsOfTheDocumentedOrderInAnyInstructionSet) {
  expect_documented_order<float>();
  expect_documented_order<double>();
}

TEST(Reduction, HasTheSameBitsForAnyNumberOfThreads) {
  const auto x = normal_numbers<float>(500'001, 5), y = normal_numbers<float>(500'001, 6);
  const int threads = omp_get_max_threads();
  std::vector<double> results;
  for (int count : {1, 2, 3}) {
    omp_set_num_threads(count);
    results.push_back(inner_product(x, y));
  }
  omp_set_num_threads(threads);
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
}

TEST(Reduction, GivesEachOfManyProductsWhatItGivesAlone) {
  const auto g = normal_numbers<float>(9'001, 7);
  std::vector<std::vector<float>> w;
  std::vector<const float*> pointers;
  for (unsigned k = 0; k < 64; ++k) w.push_back(normal_numbers<float>(9'001, 100 + k));
  for (const auto& one : w) pointers.push_back(one.data());
  std::vector<double> result(64);
  inner_products<float>(g.data(), pointers, 9'001, result);
  for (std::size_t k = 0; k < 64; ++k) EXPECT_EQ(result[k], inner_product(g, w[k]));
}

TEST(Reduction, SquaresWhatFloatCannot) {
  for (const float value : {1e-30f, 1e30f}) {
    const std::vector<float> x(5'000, value);
    const double expected = 5'000.0 * value * static_cast<double>(value);
    EXPECT_NEAR(sum_of_squares(x.data(), 5'000), expected, 1e-13 * expected);
  }
}

TEST(Reduction, PassesOnWhatIsNotFinite) {
  auto x = normal_numbers<float>(5'000, 8);
  x[4'321] = std::nanf("");
  EXPECT_TRUE(std::isnan(sum_of_squares(x.data(), 5'000)));
  x[4'321] = HUGE_VALF;
  EXPECT_TRUE(std::isinf(sum_of_squares(x.data(), 5'000)));
  EXPECT_TRUE(std::isinf(inner_product(x, x)));
}

}  // namespace
}  // namespace exfusion
