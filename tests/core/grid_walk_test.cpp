#include "core/grid_walk.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <vector>

#include "support/play_grid.h"

namespace exfusion {
namespace {

// Counts visits, and what a pack may not do: start off its alignment or reach beyond the end.
struct Visits {
  std::vector<unsigned char>& count;
  int& faults;

  template <int width>
  void at(std::int64_t i) const {
    if (i % width != 0 || i + width > static_cast<std::int64_t>(count.size())) {
      ++faults;
      return;
    }
    for (int j = 0; j < width; ++j) ++count[static_cast<std::size_t>(i + j)];
  }
};

template <int width>
void expect_each_once(std::int64_t n, std::int64_t threads) {
  std::vector<unsigned char> count(static_cast<std::size_t>(n));
  int faults = 0;
  const Visits visits{count, faults};
  if (threads == 0) play_grid<width>(n, visits);
  for (std::int64_t thread = 0; thread < threads; ++thread) walk<width>(n, thread, threads, visits);
  EXPECT_EQ(faults, 0) << n << " elements, width " << width << ", " << threads << " threads";
  EXPECT_EQ(count, std::vector<unsigned char>(count.size(), 1))
      << n << ", width " << width << ", " << threads;
}

TEST(GridWalk, VisitsEveryElementOnce) {
  for (const std::int64_t n : {1, 2, 3, 4, 5, 7, 8, 255, 256, 257, 1023, 1024, 1025, 1027, 4099, 65'537}) {
    for (const std::int64_t threads : {0, 1, 2, 3, 31, 256, 512}) {  // 0: as many as a launch starts
      expect_each_once<1>(n, threads);
      expect_each_once<kVectorWidth>(n, threads);
    }
  }
}

TEST(GridWalk, GoesRoundWhenThereIsMoreWorkThanThreads) {
  const std::int64_t threads = kMaxBlocks * kBlockThreads;
  EXPECT_EQ(walk_blocks(threads + 1, 1), kMaxBlocks);
  expect_each_once<1>(threads + 1, 0);
  expect_each_once<kVectorWidth>(threads * kVectorWidth + 7, 0);
}

TEST(GridWalk, HasNoMoreBlocksThanWork) {
  EXPECT_EQ(walk_blocks(1, kVectorWidth), 1);  // the tail alone
  EXPECT_EQ(walk_blocks(1024, kVectorWidth), 1);
  EXPECT_EQ(walk_blocks(1028, kVectorWidth), 2);
  EXPECT_EQ(walk_blocks(257, 1), 2);
  EXPECT_EQ(walk_blocks(std::int64_t{1} << 40, 1), kMaxBlocks);
}

TEST(GridWalk, KnowsWhereVectorsMayStart) {
  alignas(16) const float values[8] = {};
  EXPECT_TRUE(fits_vectors(values) && fits_vectors(values + 4));
  for (const int i : {1, 2, 3, 5}) EXPECT_FALSE(fits_vectors(values + i)) << i;
}

}  // namespace
}  // namespace exfusion
