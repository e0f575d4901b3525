// What all banks of a model do together in a step of several ranks.
#pragma once
#include <cstdint>
#include <deque>

#include "dist/leaf_tree.h"
#include "dist/process_group.h"
#include "fusion/expert_bank.h"

namespace exfusion {

// `memory` weights: adds the ranks' parts of r up, N numbers of fp32 per FFN; those that route inside the
// forward pass have done so there. Their Jacobians stay the ranks' own.
void sum_routing(std::deque<ExpertBank>& banks, const ProcessGroup& group);

// The same for a batch in leaves, with bits that no number of ranks changes: r and its Jacobian, summed in
// the tree over the leaves.
class RoutingLeaves {
 public:
  explicit RoutingLeaves(std::int64_t leaves) : leaves_(leaves), routing_(leaves), jacobians_(leaves) {}
  // After the passes of a leaf: takes over what the banks have added, and sets that to 0.
  void take(LeafNode leaf, std::deque<ExpertBank>& banks);
  // After the last one: the banks hold r and the Jacobian of the global batch.
  void finish(std::deque<ExpertBank>& banks, const ProcessGroup& group);

 private:
  std::int64_t leaves_;
  TreeSum routing_, jacobians_;
};

// The arguments of ExpertBank::update.
struct BankUpdate {
  const AdamWConfig& config;
  double lr, weights_lr;
  std::int64_t update;
  float gradient_scale;
};

// Updates every bank. What makes the prices of sharded experts is summed over ranks for all banks at once;
// so are routers' gradients, N dim numbers of fp32 per FFN, unless the Jacobians already are those of the
// whole batch.
void update_banks(std::deque<ExpertBank>& banks, const BankUpdate& update, const ProcessGroup& group,
                  bool whole_jacobians);

}  // namespace exfusion
