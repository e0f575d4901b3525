#include "dist/leaf_tree.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <stdexcept>

namespace exfusion {
namespace {

// The tree by its definition, top down.
at::Tensor node_sum(const std::vector<at::Tensor>& leaves, int level, std::int64_t index) {
  if (level == 0) return leaves[static_cast<std::size_t>(index)].clone();
  const at::Tensor left = node_sum(leaves, level - 1, 2 * index);
  const bool right = ((2 * index + 1) << (level - 1)) < static_cast<std::int64_t>(leaves.size());
  return right ? left + node_sum(leaves, level - 1, 2 * index + 1) : left;
}

TEST(LeafTree, SumsHaveTheSameBitsForAnyNumberOfRanks) {
  for (std::int64_t leaves = 1; leaves <= 37; ++leaves) {
    std::vector<at::Tensor> values;
    for (std::int64_t i = 0; i < leaves; ++i) values.push_back(at::randn({33}));
    const at::Tensor expected = node_sum(values, 6, 0);
    for (int world = 1; world <= 6; ++world) {
      TreeSum all(leaves);
      for (int rank = 0; rank < world; ++rank) {
        const auto [first, last] = leaves_of_rank(leaves, rank, world);
        TreeSum part(leaves);
        for (std::int64_t i = first; i < last; ++i)
          part.push({0, i}, values[static_cast<std::size_t>(i)].clone());
        const std::vector<LeafNode> nodes = largest_nodes(leaves, first, last);
        ASSERT_EQ(nodes.size(), part.nodes().size()) << leaves << " leaves, " << world << " ranks";
        for (std::size_t i = 0; i < nodes.size(); ++i) {
          EXPECT_EQ(nodes[i].level, part.nodes()[i].first.level);
          EXPECT_EQ(nodes[i].index, part.nodes()[i].first.index);
          all.push(nodes[i], part.nodes()[i].second);
        }
      }
      EXPECT_TRUE(at::equal(all.total(), expected)) << leaves << " leaves, " << world << " ranks";
    }
  }
}

TEST(LeafTree, RanksShareLeavesAsEvenlyAsTheyCan) {
  std::int64_t next = 0;
  for (int rank = 0; rank < 3; ++rank) {
    const auto [first, last] = leaves_of_rank(32, rank, 3);
    EXPECT_EQ(first, next);
    EXPECT_TRUE(last - first == 10 || last - first == 11);
    next = last;
  }
  EXPECT_EQ(next, 32);
}

TEST(LeafTree, AnIncompleteSumHasNoTotal) {
  TreeSum sum(3);
  EXPECT_THROW(sum.total(), std::logic_error);
  sum.push({0, 0}, at::ones({1}));
  sum.push({0, 1}, at::ones({1}));
  EXPECT_THROW(sum.total(), std::logic_error);
  sum.push({0, 2}, at::ones({1}));
  EXPECT_EQ(sum.total().item<float>(), 3.0f);
}

}  // namespace
}  // namespace exfusion
