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

}  // namespace exfusion
