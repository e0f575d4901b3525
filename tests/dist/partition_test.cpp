#include "dist/partition.h"

#include <gtest/gtest.h>

#include <vector>

namespace exfusion {
namespace {

TEST(Partition, CutsLieOnBoundariesAndAreEven) {
  const std::vector<std::int64_t> boundaries = {100, 110, 120, 130, 140, 150, 155, 160, 170, 180};
  EXPECT_EQ(cut_evenly(100, 190, boundaries, 3), (std::vector<std::int64_t>{100, 130, 160, 190}));
  EXPECT_EQ(cut_evenly(100, 190, boundaries, 2), (std::vector<std::int64_t>{100, 150, 190}));
  EXPECT_EQ(cut_evenly(100, 190, boundaries, 1), (std::vector<std::int64_t>{100, 190}));
}

TEST(Partition, MoreRanksThanBlocksLeaveSomeWithoutAPart) {
  const std::vector<std::int64_t> boundaries = {0};
  const std::vector<std::int64_t> cuts = cut_evenly(0, 10, boundaries, 4);
  EXPECT_EQ(cuts.front(), 0);
  EXPECT_EQ(cuts.back(), 10);
  for (std::size_t i = 1; i < cuts.size(); ++i) EXPECT_TRUE(cuts[i] == 0 || cuts[i] == 10);
  for (std::size_t i = 1; i < cuts.size(); ++i) EXPECT_GE(cuts[i], cuts[i - 1]);
}

TEST(Partition, ARankOwnsItsPartOfAShardedUnitAndAllOfAnother) {
  const ExchangeUnit sharded{0, 100, {0, 30, 60, 100}, true}, whole{0, 100, {0, 30, 60, 100}, false};
  EXPECT_EQ(owned_range(sharded, 1, 0, 100), std::pair(std::int64_t{30}, std::int64_t{60}));
  EXPECT_EQ(owned_range(sharded, 1, 40, 100), std::pair(std::int64_t{40}, std::int64_t{60}));
  EXPECT_EQ(owned_range(sharded, 0, 40, 100).first, owned_range(sharded, 0, 40, 100).second);
  EXPECT_EQ(owned_range(whole, 2, 10, 20), std::pair(std::int64_t{10}, std::int64_t{20}));
}

}  // namespace
}  // namespace exfusion
