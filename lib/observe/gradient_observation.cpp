#include "observe/gradient_observation.h"

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
std::vector<ClassGradients> class_gradients(const std::vector<BlockShape>& shapes, std::int64_t classes) {
  double bytes = 0.0;
  for (const BlockShape& one : shapes)
    bytes += ClassGradients::bytes(classes, one.parts, one.dim, one.hidden);
  if (bytes > kMostGradientBytes) {
    log_warning("analysis: no kappa: the gradients of {} classes would take {:.1f} GB", classes, bytes / 1e9);
    return {};
  }
  std::vector<ClassGradients> gradients;
  for (const BlockShape& one : shapes) gradients.emplace_back(classes, one.parts, one.dim, one.hidden);
  return gradients;
}

FusedObservation observed(const FusedSet& set, const VirtualScoreSums& sums) {
  const auto n = static_cast<std::size_t>(set.size());
  const double none = std::nan("");
  FusedObservation found{
      set.block, std::vector<double>(n, none), undefined_geometry(n), sums.finish(), {none, none}};
  if (!set.whole() || sums.empty()) return found;
  found.offset_norm = offset_norms(offsets(set));
  found.geometry = fused_geometry(set);
  found.functions = compare_functions(set, sums.sample().x);
  return found;
}

}  // namespace

GradientsSeen::GradientsSeen(const Model& model, const std::vector<FusedSet>& sets, std::int64_t most_batches,
                             std::int64_t classes)
    : sets_(sets), classes_(classes), shapes_(observed_shapes(model)) {
  for (const FusedSet& set : sets) scores_.emplace_back(set, most_batches, classes);
}

void GradientsSeen::add(const ModelPass& pass, const HeldOutBatch& batch) {
  if (!std::exchange(started_, true)) gradients_ = class_gradients(shapes_, classes_);
  for (std::size_t i = 0; i < gradients_.size(); ++i) gradients_[i].add(pass.blocks[i].tokens, batch.labels);
  for (std::size_t i = 0; i < sets_.size(); ++i) {
    if (sets_[i].whole()) scores_[i].add(pass.of_block(sets_[i].block).tokens.parts.front());
  }
}

GradientObservation GradientsSeen::finish() const {
  GradientObservation result;
  for (std::size_t i = 0; i < sets_.size(); ++i) result.fused.push_back(observed(sets_[i], scores_[i]));
  for (std::size_t i = 0; i < shapes_.size(); ++i)
    result.interference.push_back({shapes_[i].block, i < gradients_.size()
                                                         ? gradients_[i].finish()
                                                         : Interference(classes_, shapes_[i].parts)});
  return result;
}

}  // namespace exfusion
