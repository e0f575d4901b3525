#include "analysis/assignment.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "core/random.h"

namespace exfusion::analysis {
namespace {

double gain_of(const std::vector<double>& gain, const std::vector<std::size_t>& assigned) {
  double sum = 0.0;
  for (std::size_t u = 0; u < assigned.size(); ++u) sum += gain[u * assigned.size() + assigned[u]];
  return sum;
}

TEST(BestAssignment, IsTheBestOfAllPermutations) {
  for (std::uint32_t trial = 0; trial < 40; ++trial) {
    const std::size_t n = 1 + trial % 7;
    CounterRandom random(1, Draw::synthetic, trial);
    std::vector<double> gain(n * n);
    // Every third trial has many ties.
    for (double& one : gain) one = trial % 3 == 0 ? std::floor(3.0 * random.uniform()) : random.normal();
    const std::vector<std::size_t> found = best_assignment(gain, n);
    std::vector<std::size_t> order(n), sorted = found;
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::sort(sorted);
    EXPECT_EQ(sorted, order) << "not a permutation";
    double best = gain_of(gain, order);
    while (std::next_permutation(order.begin(), order.end())) best = std::max(best, gain_of(gain, order));
    EXPECT_NEAR(gain_of(gain, found), best, 1e-12) << "trial " << trial;
  }
}

TEST(BestAssignment, RefusesWhatIsNoSquareOfNumbers) {
  EXPECT_THROW(best_assignment(std::vector<double>{1.0, 2.0}, 2), std::invalid_argument);
  EXPECT_THROW(best_assignment(std::vector<double>{1.0, 2.0, 3.0, std::nan("")}, 2), std::invalid_argument);
  EXPECT_TRUE(best_assignment({}, 0).empty());
}

}  // namespace
}  // namespace exfusion::analysis
