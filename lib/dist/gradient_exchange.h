// Sums the gradients of all ranks, in a flat buffer into which autograd accumulates. Either unit by unit
// while the backward pass goes on, or leaf by leaf in one tree whose bits no number of ranks changes
// (dist/leaf_tree.h).
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "dist/leaf_tree.h"
#include "dist/partition.h"
#include "dist/process_group.h"

namespace exfusion {

// A trainable leaf, whose gradient is elements [begin, begin + numel) of the buffer.
struct ExchangedParameter {
  std::string name;
  at::Tensor parameter;
  std::int64_t begin = 0;
};

class GradientExchange {
 public:
  // `gradients` [n] is cut into `units`; `parameters` in the order of the forward pass: the backward pass
  // completes the last first.
  GradientExchange(ProcessGroup group, at::Tensor gradients, std::vector<ExchangeUnit> units,
                   std::vector<ExchangedParameter> parameters);
  ~GradientExchange();

  // The next backward pass is the step's last: a unit goes out as soon as its gradients are complete, in the
  // same order on every rank.
  void begin_last_pass();
  // After it: waits, and the buffer holds the sums over ranks (of sharded units in the rank's own part only).
  // Throws DistributedError; GraphError naming a parameter that the backward pass did not reach.
  void finish();
  // Instead of both: the buffer receives scale times the sum of all leaves, of which each rank brings its own
  // (all of them contiguous, leaves_of_rank).
  void finish(const TreeSum& own_leaves, std::int64_t leaves, float scale);

  const ProcessGroup& group() const;
  // The rank's own part of elements [begin, end), see owned_range.
  std::pair<std::int64_t, std::int64_t> owned(std::int64_t begin, std::int64_t end) const;
  // Whether the unit that holds this element is shared among more than one rank.
  bool sharded(std::int64_t element) const;
  // Everyone receives what others own of elements [begin, end) of `values` [n], of the layout of the
  // gradients, once all that is returned has been waited for.
  std::vector<Pending> start_gather(const at::Tensor& values, std::int64_t begin, std::int64_t end) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace exfusion
