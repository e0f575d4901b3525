#include "observe/gradient_observation.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <optional>
#include <utility>

#include "core/log.h"
#include "nn/block.h"
#include "nn/ffn.h"
#include "nn/topk_ffn.h"

namespace exfusion {
namespace {

constexpr double kMostGradientBytes = 1e9;  // of the class gradients of all blocks

std::vector<BlockShape> observed_shapes(const Model& model) {
  std::vector<BlockShape> shapes;
  const auto blocks = find_blocks(model);
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const auto block = static_cast<std::int64_t>(i);
    if (const auto* dense = dynamic_cast<const Ffn*>(blocks[i]->ffn().get())) {
      const at::Tensor fc1 = dense->parameters_in_order()[0];
      shapes.push_back({block, 1, fc1.size(1), fc1.size(0)});
    } else if (const auto* sparse = dynamic_cast<const TopkFfn*>(blocks[i]->ffn().get())) {
      const at::Tensor fc1 = sparse->experts().tensors[0];
      shapes.push_back({block, fc1.size(0), fc1.size(2), fc1.size(1)});
    }
  }
  return shapes;
}

// Empty where they would not fit into memory.
// Whether they fit does not depend on the number of ranks.
std::map<std::int64_t, ClassGradients> class_gradients(const std::vector<BlockShape>& shapes,
                                                       std::int64_t classes, const BlockShare& share) {
  double bytes = 0.0;
  for (const BlockShape& one : shapes)
    bytes += ClassGradients::bytes(classes, one.parts, one.dim, one.hidden);
  if (bytes > kMostGradientBytes) {
    log_warning("analysis: no kappa: the gradients of {} classes would take {:.1f} GB", classes, bytes / 1e9);
    return {};
  }
  std::map<std::int64_t, ClassGradients> gradients;
  for (const BlockShape& one : shapes)
    if (share.has(one.block)) gradients.try_emplace(one.block, classes, one.parts, one.dim, one.hidden);
  return gradients;
}

FusedObservation observed(const FusedSet& set, const VirtualScoreSums& sums) {
  const auto n = static_cast<std::size_t>(set.size());
  const double none = std::nan("");
  FusedObservation found{
      set.block,   std::vector<double>(n, none), undefined_geometry(n), sums.finish(), sums.prices(),
      {none, none}};
  if (!set.whole() || sums.empty()) return found;
  found.offset_norm = offset_norms(offsets(set));
  found.geometry = fused_geometry(set);
  found.functions = compare_functions(set, sums.sample().x);
  return found;
}

}  // namespace

GradientsSeen::GradientsSeen(const Model& model, const std::vector<FusedSet>& sets, std::int64_t most_batches,
                             std::int64_t classes, const BlockShare& share)
    : sets_(sets), classes_(classes), share_(share), shapes_(observed_shapes(model)) {
  for (const FusedSet& set : sets) scores_.emplace_back(set, most_batches, classes);
}

void GradientsSeen::add(const ModelPass& pass, const HeldOutBatch& batch) {
  if (!std::exchange(started_, true)) gradients_ = class_gradients(shapes_, classes_, share_);
  // Blocks side by side: their products are too small to be divided among threads.
  at::parallel_for(0, std::ssize(shapes_), 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) {
      const std::int64_t block = shapes_[static_cast<std::size_t>(i)].block;
      const auto gradients = gradients_.find(block);
      if (gradients != gradients_.end()) gradients->second.add(pass.of_block(block).tokens, batch.labels);
    }
  });
  at::parallel_for(0, std::ssize(sets_), 1, [&](std::int64_t first, std::int64_t last) {
    for (auto i = static_cast<std::size_t>(first); i < static_cast<std::size_t>(last); ++i) {
      if (sets_[i].whole() && share_.has(sets_[i].block))
        scores_[i].add(pass.of_block(sets_[i].block).tokens.parts.front());
    }
  });
}

GradientObservation GradientsSeen::finish() const {
  GradientObservation result;
  for (std::size_t i = 0; i < sets_.size(); ++i) result.fused.push_back(observed(sets_[i], scores_[i]));
  for (const BlockShape& one : shapes_) {
    const auto found = gradients_.find(one.block);
    result.interference.push_back(
        {one.block, found != gradients_.end() ? found->second.finish() : Interference(classes_, one.parts)});
  }
  return result;
}

}  // namespace exfusion
