#include "core/random.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <set>
#include <stdexcept>

namespace exfusion {
namespace {

using Words = std::array<std::uint32_t, 4>;

// The largest distance between the empirical and the exact distribution function, times sqrt(n). Kolmogorov:
// above 1.95 with probability 0.001. The seeds are fixed, so a test that passes once passes always.
double kolmogorov(std::vector<double> draws, const std::function<double(double)>& distribution) {
  std::sort(draws.begin(), draws.end());
  const double n = static_cast<double>(draws.size());
  double largest = 0;
  for (std::size_t i = 0; i < draws.size(); ++i) {
    const double exact = distribution(draws[i]);
    largest = std::max({largest, exact - static_cast<double>(i) / n, static_cast<double>(i + 1) / n - exact});
  }
  return largest * std::sqrt(n);
}
constexpr double kCritical = 1.95;

template <class DrawOne>
std::vector<double> draw(int n, DrawOne one) {
  CounterRandom random(1234, Draw::synthetic);
  std::vector<double> result(static_cast<std::size_t>(n));
  for (double& value : result) value = one(random);
  return result;
}

// Known answers: file kat_vectors of Random123 (Salmon et al., SC 2011).
TEST(Philox, GivesTheKnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(CounterRandom, IsPhiloxAtTheCounterOfItsPlace) {
  CounterRandom random(0x1122334455667788, Draw::drop_path, 5, 7, 11);
  for (std::uint32_t block = 0; block < 3; ++block)
    for (const std::uint32_t word : philox4x32({block, 7, 5, 4u << 24 | 11}, {0x55667788, 0x11223344}))
      EXPECT_EQ(random.bits(), word);
}

TEST(CounterRandom, DiffersFromPlaceToPlace) {
  std::set<std::pair<std::uint32_t, std::uint32_t>> seen;
  int places = 0;
  const auto look = [&](CounterRandom random) {
    const std::uint32_t first = random.bits();
    seen.insert({first, random.bits()});
    ++places;
  };
  for (const Draw what : {Draw::init, Draw::augment, Draw::holdout})
    for (std::uint32_t epoch = 0; epoch < 10; ++epoch)
      for (std::uint32_t sample = 0; sample < 10; ++sample)
        for (std::uint32_t layer = 0; layer < 10; ++layer) look(CounterRandom(1, what, epoch, sample, layer));
  look(CounterRandom(2, Draw::init));
  look(CounterRandom(1ull << 32 | 1, Draw::init));
  EXPECT_EQ(static_cast<int>(seen.size()), places);
}

TEST(CounterRandom, NeighbouringPlacesAreUncorrelated) {
  constexpr int n = 100000;
  double sum = 0;
  for (std::uint32_t sample = 0; sample < n; ++sample)
    sum += (CounterRandom(3, Draw::augment, 0, sample).uniform() - 0.5) *
           (CounterRandom(3, Draw::augment, 0, sample + 1).uniform() - 0.5) * 12;
  EXPECT_LT(std::abs(sum / std::sqrt(n)), 3.3);  // a standard normal, two-sided 0.001
}

TEST(CounterRandom, RefusesALayerThatWouldRunIntoThePurpose) {
  EXPECT_NO_THROW(CounterRandom(0, Draw::init, 0, 0, (1u << 24) - 1));
  EXPECT_THROW(CounterRandom(0, Draw::init, 0, 0, 1u << 24), std::invalid_argument);
}

TEST(CounterRandom, UniformIsUniformWith53Bits) {
  const std::vector<double> draws = draw(100000, [](CounterRandom& r) { return r.uniform(); });
  EXPECT_LT(kolmogorov(draws, [](double x) { return x; }), kCritical);
  EXPECT_GE(*std::min_element(draws.begin(), draws.end()), 0.0);
  EXPECT_LT(*std::max_element(draws.begin(), draws.end()), 1.0);
  bool lowest_bit = false;
  for (const double x : draws) {
    EXPECT_EQ(std::fmod(x * 0x1p53, 1.0), 0.0);
    lowest_bit |= std::fmod(x * 0x1p53, 2.0) == 1.0;
  }
  EXPECT_TRUE(lowest_bit);
}

TEST(CounterRandom, UniformStaysBelowTheUpperEnd) {
  const double high = std::nextafter(1.0, 2.0);  // every sum rounds to 1 or to `high`
  for (const double x : draw(1000, [&](CounterRandom& r) { return r.uniform(1.0, high); })) EXPECT_EQ(x, 1.0);
  const std::vector<double> draws = draw(100000, [](CounterRandom& r) { return r.uniform(-3.0, 5.0); });
  EXPECT_LT(kolmogorov(draws, [](double x) { return (x + 3) / 8; }), kCritical);
}

TEST(CounterRandom, NormalIsNormal) {
  const std::vector<double> draws = draw(100000, [](CounterRandom& r) { return r.normal(); });
  EXPECT_LT(kolmogorov(draws, [](double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }), kCritical);
  double fourth = 0;
  for (const double x : draws) fourth += x * x * x * x;
  EXPECT_NEAR(fourth / 1e5, 3.0, 3.3 * std::sqrt(96.0 / 1e5));  // variance of x^4 is 105 - 9
}

TEST(CounterRandom, BetaHasItsClosedFormDistributions) {
  for (const double shape : {0.05, 0.3, 1.0, 2.5}) {
    const std::vector<double> power = draw(50000, [&](CounterRandom& r) { return r.beta(shape, 1.0); });
    EXPECT_LT(kolmogorov(power, [&](double x) { return std::pow(x, shape); }), kCritical) << shape;
    if (shape < 0.3) continue;  // seen from 1, small shapes are beyond the resolution of a double
    const std::vector<double> mirrored = draw(50000, [&](CounterRandom& r) { return r.beta(1.0, shape); });
    EXPECT_LT(kolmogorov(mirrored, [&](double x) { return 1 - std::pow(1 - x, shape); }), kCritical) << shape;
  }
  const std::vector<double> arcsine = draw(50000, [](CounterRandom& r) { return r.beta(0.5, 0.5); });
  EXPECT_LT(kolmogorov(arcsine, [](double x) { return 2 / M_PI * std::asin(std::sqrt(x)); }), kCritical);
  const std::vector<double> cubic = draw(50000, [](CounterRandom& r) { return r.beta(2, 2); });
  EXPECT_LT(kolmogorov(cubic, [](double x) { return x * x * (3 - 2 * x); }), kCritical);
}

TEST(CounterRandom, BetaOfTinyShapesIsACoinAndNeverNotANumber) {
  double sum = 0;
  for (const double x : draw(20000, [](CounterRandom& r) { return r.beta(1e-4, 1e-4); })) {
    ASSERT_TRUE(x >= 0 && x <= 1);
    sum += x;
  }
  EXPECT_NEAR(sum / 20000, 0.5, 3.3 * 0.5 / std::sqrt(20000.0));
  EXPECT_THROW(CounterRandom(0, Draw::mix).beta(0, 1), std::invalid_argument);
  EXPECT_THROW(CounterRandom(0, Draw::mix).beta(1, std::nan("")), std::invalid_argument);
}

TEST(CounterRandom, BelowHasNoBias) {
  CounterRandom random(5, Draw::mix);
  std::array<double, 6> counts{};
  for (int i = 0; i < 60000; ++i) ++counts.at(random.below(6));
  double chi_square = 0;
  for (const double count : counts) chi_square += (count - 10000) * (count - 10000) / 10000;
  EXPECT_LT(chi_square, 20.5);  // 5 degrees of freedom, 0.001
  // Without rejection every third number below 3 * 2^30 would be twice as likely as the others.
  std::array<double, 3> thirds{};
  for (int i = 0; i < 60000; ++i) ++thirds.at(random.below(3u << 30) % 3);
  for (const double count : thirds) EXPECT_NEAR(count, 20000, 3.5 * std::sqrt(60000 * 2.0 / 9));
  EXPECT_EQ(random.below(1), 0u);
  EXPECT_THROW(random.below(0), std::invalid_argument);
}

TEST(RandomPermutation, IsAPermutationThatDiffersByEpoch) {
  const auto order = [](std::uint32_t epoch) {
    return random_permutation(1000, CounterRandom(7, Draw::order, epoch));
  };
  std::vector<std::int64_t> sorted = order(0);
  std::sort(sorted.begin(), sorted.end());
  std::vector<std::int64_t> identity(1000);
  std::iota(identity.begin(), identity.end(), 0);
  EXPECT_EQ(sorted, identity);
  EXPECT_EQ(order(0), order(0));
  EXPECT_NE(order(0), order(1));
  EXPECT_NE(order(0), identity);
  EXPECT_TRUE(random_permutation(0, CounterRandom(7, Draw::order)).empty());
  EXPECT_EQ(random_permutation(1, CounterRandom(7, Draw::order)), std::vector<std::int64_t>{0});
  EXPECT_THROW(random_permutation(-1, CounterRandom(7, Draw::order)), std::invalid_argument);
  EXPECT_THROW(random_permutation(std::int64_t{1} << 32, CounterRandom(7, Draw::order)),
               std::invalid_argument);
}

TEST(RandomPermutation, AllOrdersAreEquallyLikely) {
  std::array<double, 24> counts{};
  for (std::uint32_t epoch = 0; epoch < 24000; ++epoch) {
    const std::vector<std::int64_t> order = random_permutation(4, CounterRandom(9, Draw::order, epoch));
    std::size_t rank = 0;  // of the order among all 24
    for (std::size_t i = 0; i < 4; ++i)
      rank = rank * (4 - i) +
             static_cast<std::size_t>(std::count_if(order.begin() + static_cast<long>(i), order.end(),
                                                    [&](auto other) { return other < order[i]; }));
    ++counts.at(rank);
  }
  double chi_square = 0;
  for (const double count : counts) chi_square += (count - 1000) * (count - 1000) / 1000;
  EXPECT_LT(chi_square, 49.7);  // 23 degrees of freedom, 0.001
}

}  // namespace
}  // namespace exfusion
