#include "dist/leaf_tree.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <stdexcept>

namespace exfusion {
namespace {

// The first leaf behind a node.
std::int64_t end_of(const LeafNode& node, std::int64_t leaves) {
  return std::min(leaves, (node.index + 1) << node.level);
}

// A node whose right sibling does not exist is its parent too.
bool only_child(const LeafNode& node, std::int64_t leaves) {
  return node.index > 0 && node.index % 2 == 0 && end_of(node, leaves) == leaves;
}

}  // namespace

std::pair<std::int64_t, std::int64_t> leaves_of_rank(std::int64_t leaves, int rank, int world) {
  return {leaves * rank / world, leaves * (rank + 1) / world};
}

std::vector<LeafNode> largest_nodes(std::int64_t leaves, std::int64_t first, std::int64_t last) {
  std::vector<LeafNode> nodes;
  while (first < last) {
    LeafNode node{0, first};
    while (node.index % 2 == 0 && end_of(node, leaves) < leaves &&
           end_of({node.level + 1, node.index / 2}, leaves) <= last)
      node = {node.level + 1, node.index / 2};
    while (only_child(node, leaves)) node = {node.level + 1, node.index / 2};
    nodes.push_back(node);
    first = end_of(node, leaves);
  }
  return nodes;
}

void TreeSum::push(LeafNode node, at::Tensor sum) {
  while (true) {
    while (only_child(node, leaves_)) node = {node.level + 1, node.index / 2};
    if (nodes_.empty() || node.index % 2 == 0 || nodes_.back().first.level != node.level) break;
    sum = nodes_.back().second.add_(sum);
    nodes_.pop_back();
    node = {node.level + 1, node.index / 2};
  }
  nodes_.emplace_back(node, std::move(sum));
}

at::Tensor TreeSum::total() const {
  if (nodes_.size() != 1 || end_of(nodes_[0].first, leaves_) != leaves_ || nodes_[0].first.index != 0)
    throw std::logic_error("the tree over the leaves is not complete");
  return nodes_[0].second;
}

at::Tensor total_over_ranks(const TreeSum& own, std::int64_t leaves, const ProcessGroup& group) {
  if (group.alone()) return own.total();
  const at::Tensor& any = own.nodes().front().second;
  const std::int64_t size = any.numel();
  std::vector<LeafNode> nodes;
  std::vector<std::int64_t> cuts = {0};
  for (int rank = 0; rank < group.world(); ++rank) {
    const auto [first, last] = leaves_of_rank(leaves, rank, group.world());
    const std::vector<LeafNode> of_rank = largest_nodes(leaves, first, last);
    nodes.insert(nodes.end(), of_rank.begin(), of_rank.end());
    cuts.push_back(static_cast<std::int64_t>(nodes.size()) * size);
  }
  const at::Tensor all = at::empty({cuts.back()}, any.options());
  std::int64_t place = cuts[static_cast<std::size_t>(group.rank())];
  for (const auto& [node, sum] : own.nodes()) {
    all.narrow(0, place, size).copy_(sum.reshape(-1));
    place += size;
  }
  group.all_gather(all, cuts);
  TreeSum total(leaves);
  for (std::size_t i = 0; i < nodes.size(); ++i)
    total.push(nodes[i], all.narrow(0, static_cast<std::int64_t>(i) * size, size));
  return total.total().view(any.sizes());
}

}  // namespace exfusion
