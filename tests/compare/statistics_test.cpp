#include "compare/statistics.h"

#include <gtest/gtest.h>

#include <cmath>

// scipy's answers to random samples: tests/python/test_compare.py.

namespace exfusion {
namespace {

TEST(Statistics, MeanAndDeviationOfKnownNumbers) {
  const std::vector<double> values = {2, 4, 4, 4, 5, 5, 7, 9};
  EXPECT_DOUBLE_EQ(mean(values), 5.0);
  EXPECT_DOUBLE_EQ(standard_deviation(values), std::sqrt(32.0 / 7.0));
}

TEST(TInterval, IsTheTextbookOneForFiveDifferences) {
  // t(0.975, 4) = 2.7764; mean 3, sd sqrt(2.5)
  const Interval interval = t_interval(std::vector<double>{1, 2, 3, 4, 5}, 0.95);
  const double half = 2.7764451051977987 * std::sqrt(2.5 / 5.0);
  EXPECT_NEAR(interval.low, 3.0 - half, 1e-12);
  EXPECT_NEAR(interval.high, 3.0 + half, 1e-12);
}

TEST(TInterval, OfTwoDifferencesUsesTheCauchyQuantile) {
  const Interval interval = t_interval(std::vector<double>{-1, 1}, 0.95);
  EXPECT_NEAR(interval.high, std::tan(0.475 * M_PI) * std::sqrt(2.0) / std::sqrt(2.0), 1e-9);
  EXPECT_DOUBLE_EQ(interval.low, -interval.high);
}

TEST(Bootstrap, IsTheSameEveryTimeAndHoldsTheMean) {
  const std::vector<double> differences = {0.1, -0.2, 0.4, 0.3, 0.05, 0.2};
  const Interval once = bootstrap_interval(differences, 0.95), again = bootstrap_interval(differences, 0.95);
  EXPECT_EQ(once.low, again.low);
  EXPECT_EQ(once.high, again.high);
  EXPECT_LT(once.low, mean(differences));
  EXPECT_GT(once.high, mean(differences));
}

TEST(Bootstrap, OfEqualDifferencesIsThatDifference) {
  const Interval interval = bootstrap_interval(std::vector<double>{0.25, 0.25, 0.25}, 0.95);
  EXPECT_EQ(interval.low, 0.25);
  EXPECT_EQ(interval.high, 0.25);
}

TEST(SignFlip, OfDifferencesOfOneSignIsTheSmallestP) {
  for (const std::size_t n : {1u, 2u, 5u, 12u}) {
    std::vector<double> differences;
    for (std::size_t i = 0; i < n; ++i) differences.push_back(1.0 + static_cast<double>(i));
    EXPECT_DOUBLE_EQ(sign_flip_p(differences), smallest_p(n));
    EXPECT_DOUBLE_EQ(smallest_p(n), 2.0 / std::pow(2.0, static_cast<double>(n)));
  }
}

TEST(SignFlip, CountsByHand) {
  // |+-1 +-2 +-3| >= 4: six and four of eight patterns, 4 = 3 + 2 - 1 among them.
  EXPECT_DOUBLE_EQ(sign_flip_p(std::vector<double>{-1, 2, 3}), 0.5);
}

TEST(SignFlip, CountsTiesThatRoundingHides) {
  // 0.1 + 0.2 - 0.3 is 5.6e-17 and 0.1 + 0.2 + 0.3 - ... differ by rounding alone.
  EXPECT_DOUBLE_EQ(sign_flip_p(std::vector<double>{0.1, 0.2, -0.3}), 1.0);
  EXPECT_DOUBLE_EQ(sign_flip_p(std::vector<double>{0.3, -0.1, 0.1, 0.1}),
                   sign_flip_p(std::vector<double>{3, -1, 1, 1}));
}

TEST(SignFlip, OfNothingButZerosIsOne) {
  EXPECT_DOUBLE_EQ(sign_flip_p(std::vector<double>(6, 0.0)), 1.0);
  EXPECT_DOUBLE_EQ(sign_flip_p(std::vector<double>(30, 0.0)), 1.0);
}

TEST(SignFlip, DrawsPatternsWhenThereAreTooManyAndNeverReachesZero) {
  const std::vector<double> clear(25, 1.0);
  EXPECT_DOUBLE_EQ(sign_flip_p(clear), 1.0 / 100001.0);
  EXPECT_DOUBLE_EQ(smallest_p(25), 1.0 / 100001.0);
  // Of 40 signs, |sum| >= 10 has the probability 0.1538 (binomial, both tails from 25 on).
  std::vector<double> mixed(40, 1.0);
  for (std::size_t i = 0; i < 15; ++i) mixed[i] = -1.0;
  EXPECT_NEAR(sign_flip_p(mixed), 0.15386, 0.004);
}

TEST(Holm, IsTheWorkedExample) {
  // Holm 1979: ordered p times 4, 3, 2, 1, made monotone.
  const std::vector<double> adjusted = holm(std::vector<double>{0.01, 0.04, 0.03, 0.005});
  const std::vector<double> expected = {0.03, 0.06, 0.06, 0.02};
  for (std::size_t i = 0; i < 4; ++i) EXPECT_NEAR(adjusted[i], expected[i], 1e-15);
  EXPECT_EQ(holm(std::vector<double>{0.7, 0.9}), (std::vector<double>{1.0, 1.0}));
  EXPECT_TRUE(holm({}).empty());
}

TEST(Power, NeedsThePublishedNumberOfPairs) {
  // Cohen 1988, d = 0.5, two-sided 5 %, power 0.8: 34 pairs; d = 1: 10; d = 0.2: 199 (G*Power).
  EXPECT_EQ(seeds_needed(0.5, 1.0), 34);
  EXPECT_EQ(seeds_needed(1.0, 1.0), 10);
  EXPECT_EQ(seeds_needed(0.2, 1.0), 199);
  EXPECT_NEAR(paired_power(34, 0.5, 1.0), 0.8078, 1e-4);
}

TEST(Power, HasEdges) {
  EXPECT_EQ(seeds_needed(0.003, 0.0), 2);
  EXPECT_EQ(seeds_needed(0.003, 1e-12), 2);
  EXPECT_EQ(seeds_needed(0.003, 10.0), std::nullopt);
  EXPECT_NEAR(paired_power(10, 0.0, 1.0), kLevel, 1e-9);
}

TEST(Power, TheNumberNeededIsTheFirstThatSuffices) {
  for (const double deviation : {0.0004, 0.001, 0.0025, 0.006, 0.02}) {
    const auto needed = seeds_needed(0.003, deviation);
    ASSERT_TRUE(needed);
    EXPECT_GE(paired_power(*needed, 0.003, deviation), kPower);
    if (*needed > 2) {
      EXPECT_LT(paired_power(*needed - 1, 0.003, deviation), kPower);
    }
  }
}

}  // namespace
}  // namespace exfusion
