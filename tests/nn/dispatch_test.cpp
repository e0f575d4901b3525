#include "nn/dispatch.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <numeric>

namespace exfusion {
namespace {

std::vector<std::int64_t> integers(const at::Tensor& tensor) {
  return {tensor.const_data_ptr<std::int64_t>(), tensor.const_data_ptr<std::int64_t>() + tensor.numel()};
}

at::Tensor experts_of(const std::vector<std::int64_t>& experts) {
  return at::tensor(experts, at::kLong);
}

using Numbers = std::vector<std::int64_t>;

TEST(DispatchByExpert, SortsStably) {
  const Dispatch dispatch = dispatch_by_expert(experts_of({2, 0, 2, 0, 3, 2}), 4, 0);
  EXPECT_EQ(integers(dispatch.order), (Numbers{1, 3, 0, 2, 5, 4}));
  EXPECT_EQ(integers(dispatch.inverse), (Numbers{2, 0, 3, 1, 5, 4}));
  EXPECT_EQ(dispatch.loads, (Numbers{2, 0, 3, 1}));
  EXPECT_EQ(dispatch.counts, dispatch.loads);
}

TEST(DispatchByExpert, AFullExpertKeepsItsFirstAssignmentsAndTheRestComesLast) {
  const Dispatch dispatch = dispatch_by_expert(experts_of({1, 1, 0, 1, 0, 1}), 3, 2);
  EXPECT_EQ(integers(dispatch.order), (Numbers{2, 4, 0, 1, 3, 5}));
  EXPECT_EQ(dispatch.loads, (Numbers{2, 4, 0}));
  EXPECT_EQ(dispatch.counts, (Numbers{2, 2, 0}));
}

TEST(DispatchByExpert, ReadsATensorThatIsNotContiguous) {
  const at::Tensor table = at::tensor(Numbers{1, 9, 0, 9, 1, 9}, at::kLong).view({3, 2});
  EXPECT_EQ(integers(dispatch_by_expert(table.select(1, 0), 2, 0).order), (Numbers{1, 0, 2}));
}

TEST(DispatchByExpert, AnExpertThatDoesNotExistIsAnError) {
  EXPECT_THROW(dispatch_by_expert(experts_of({0, 3}), 3, 0), std::out_of_range);
  EXPECT_THROW(dispatch_by_expert(experts_of({0, -1}), 3, 0), std::out_of_range);
}

TEST(RandomPartition, PartsAreEqualUpToOneAndHoldEveryTokenOnce) {
  for (const std::int64_t n : {0, 3, 8, 50, 101}) {
    const Dispatch dispatch =
        dispatch_by_expert(random_partition(n, 4, CounterRandom(7, Draw::token_partition, 1, 2, 3)), 4, 0);
    Numbers order = integers(dispatch.order), all(static_cast<std::size_t>(n));
    for (std::size_t i = 0; i < order.size(); ++i)
      EXPECT_EQ(integers(dispatch.inverse)[static_cast<std::size_t>(order[i])], static_cast<std::int64_t>(i));
    std::ranges::sort(order);
    std::iota(all.begin(), all.end(), 0);
    EXPECT_EQ(order, all);
    const auto [least, most] = std::ranges::minmax(dispatch.counts);
    EXPECT_LE(most - least, 1) << n;
    EXPECT_EQ(std::accumulate(dispatch.counts.begin(), dispatch.counts.end(), 0L), n);
  }
}

// Each of 6 tokens is with expert 0 of 3 in a third of the draws, and each pair of tokens is there together
// in C(4,0)/C(6,2) = 1/15 of them; six standard deviations of 30000 draws.
TEST(RandomPartition, IsUniform) {
  constexpr int kDraws = 30000;
  std::array<int, 6> alone{};
  std::array<std::array<int, 6>, 6> together{};
  for (std::uint32_t draw = 0; draw < kDraws; ++draw) {
    const Numbers order = integers(
        dispatch_by_expert(random_partition(6, 3, CounterRandom(1, Draw::token_partition, draw)), 3, 0)
            .order);
    const auto first = static_cast<std::size_t>(order[0]), second = static_cast<std::size_t>(order[1]);
    ++alone[first];
    ++alone[second];
    ++together[std::min(first, second)][std::max(first, second)];
  }
  const auto close = [](int count, double p) {
    return std::abs(count - kDraws * p) < 6.0 * std::sqrt(kDraws * p * (1.0 - p));
  };
  for (std::size_t i = 0; i < 6; ++i) {
    EXPECT_TRUE(close(alone[i], 1.0 / 3.0)) << i << ": " << alone[i];
    for (std::size_t j = i + 1; j < 6; ++j)
      EXPECT_TRUE(close(together[i][j], 1.0 / 15.0)) << i << ", " << j << ": " << together[i][j];
  }
}

TEST(TakeRows, EqualsIndexSelectWithItsGradient) {
  constexpr std::int64_t kRows = 7, kChoices = 3, kColumns = 5;
  const Dispatch dispatch = dispatch_by_expert(
      random_partition(kRows * kChoices, 2, CounterRandom(3, Draw::token_partition)), 2, 0);
  const at::Tensor x = at::randn({kRows, kColumns}, at::kDouble),
                   weight = at::randn({21, kColumns}, at::kDouble);
  const at::Tensor ours = x.clone().set_requires_grad(true), theirs = x.clone().set_requires_grad(true);
  const at::Tensor taken = take_rows(ours, dispatch.order, dispatch.inverse, kChoices);
  const at::Tensor expected = theirs.index_select(0, dispatch.order.floor_divide(kChoices));
  EXPECT_TRUE(at::equal(taken, expected));
  (taken * weight).sum().backward();
  (expected * weight).sum().backward();
  EXPECT_LT((ours.grad() - theirs.grad()).abs().max().item<double>(), 1e-14);
}

TEST(TakeRows, ThereAndBackIsTheSame) {
  const Dispatch dispatch =
      dispatch_by_expert(random_partition(9, 2, CounterRandom(4, Draw::token_partition)), 2, 0);
  const at::Tensor x = at::randn({9, 4});
  const at::Tensor there = take_rows(x, dispatch.order, dispatch.inverse, 1);
  EXPECT_FALSE(at::equal(there, x));
  EXPECT_TRUE(at::equal(take_rows(there, dispatch.inverse, dispatch.order, 1), x));
}

}  // namespace
}  // namespace exfusion
