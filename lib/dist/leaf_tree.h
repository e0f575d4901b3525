// One binary tree over the leaves of a global batch: what is added in it has the same bits however many ranks
// hold the leaves. Node (level, index) stands for the leaves [index 2^level, (index + 1) 2^level), as far as
// they exist; it is the sum of its two halves, or the left one where there is no right one.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "dist/process_group.h"

namespace exfusion {

struct LeafNode {
  int level = 0;
  std::int64_t index = 0;
};

// The leaves [first, second) of `rank`: contiguous, of counts that differ by one at most.
std::pair<std::int64_t, std::int64_t> leaves_of_rank(std::int64_t leaves, int rank, int world);

// The largest nodes that lie within the leaves [first, last), in order.
std::vector<LeafNode> largest_nodes(std::int64_t leaves, std::int64_t first, std::int64_t last);

// Adds nodes that are pushed in order. Its tensors are its own: what is pushed is added to.
class TreeSum {
 public:
  explicit TreeSum(std::int64_t leaves) : leaves_(leaves) {}
  void push(LeafNode node, at::Tensor sum);
  // The sums of the largest nodes of what was pushed.
  const std::vector<std::pair<LeafNode, at::Tensor>>& nodes() const { return nodes_; }
  at::Tensor total() const;  // after the last leaf; throws std::logic_error before

 private:
  std::int64_t leaves_;
  std::vector<std::pair<LeafNode, at::Tensor>> nodes_;
};

// The total of the leaves of all ranks, of which `own` holds this rank's (leaves_of_rank). Every rank
// receives it.
at::Tensor total_over_ranks(const TreeSum& own, std::int64_t leaves, const ProcessGroup& group);

}  // namespace exfusion
