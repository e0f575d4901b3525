#include "observe/intervention.h"

#include <ATen/ATen.h>

#include "models/model.h"
#include "nn/ffn.h"
#include "nn/residual.h"

namespace exfusion {
namespace {

using analysis::HeldOutImages;
using analysis::ImageSums;
using Blocks = std::vector<std::shared_ptr<Block>>;

void add_by_class(const at::Tensor& values, const at::Tensor& labels, double* sums) {
  for (std::int64_t i = 0; i < values.numel(); ++i)
    sums[labels.const_data_ptr<std::int64_t>()[i]] += values.const_data_ptr<double>()[i];
}

}  // namespace

Intervention with_weights(FfnTensors tensors) {
  return [tensors = std::move(tensors)](const at::Tensor& x, const at::Tensor&) {
    return ffn_output(x, tensors);
  };
}

ImageScores score_images(const at::Tensor& logits, const at::Tensor& labels) {
  return {at::cross_entropy_loss(logits.to(at::kDouble), labels, {}, at::Reduction::None),
          logits.argmax(1).eq(labels).to(at::kDouble)};
}

ImageSums zero_sums(const HeldOutImages& held_out) {
  return {std::vector<double>(held_out.images.size()), std::vector<double>(held_out.images.size())};
}

void add_scores(const ImageScores& scores, const at::Tensor& labels, std::size_t first, ImageSums& to) {
  add_by_class(scores.loss, labels, to.loss.data() + first);
  add_by_class(scores.correct, labels, to.correct.data() + first);
}

HeldOutImages unchanged_model(Model& model, const std::vector<HeldOutBatch>& batches, std::int64_t classes) {
  HeldOutImages found{batches.size(), static_cast<std::size_t>(classes)};
  found.images.resize(found.batches * found.classes);
  found.model = zero_sums(found);
  for (std::size_t b = 0; b < batches.size(); ++b) {
    const at::Tensor& labels = batches[b].labels;
    add_by_class(at::ones({labels.numel()}, at::kDouble), labels, found.images.data() + b * found.classes);
    add_scores(score_images(model.forward(batches[b].images, {}), labels), labels, b * found.classes,
               found.model);
  }
  return found;
}

at::Tensor run_from(Model& model, const Blocks& blocks, std::size_t block, const at::Tensor& stream,
                    const at::Tensor& y) {
  Residual position{stream, y, {}};
  for (std::size_t b = block + 1; b < blocks.size(); ++b) position = blocks[b]->forward(position, {}, {});
  return model.classify(add_branch(position));
}

std::vector<ImageSums> measure_interventions(Model& model, const Blocks& blocks, std::size_t block,
                                             const std::vector<HeldOutBatch>& batches,
                                             const HeldOutImages& held_out,
                                             const std::vector<Intervention>& interventions,
                                             const std::function<void(double)>& progress) {
  std::vector<ImageSums> changes(interventions.size(), zero_sums(held_out));
  for (std::size_t b = 0; b < batches.size(); ++b) {
    at::Tensor x, stream, y;
    blocks[block]->observe_ffn([&](const at::Tensor& input, const at::Tensor& before) {
      x = input;
      stream = before;
      return y = blocks[block]->ffn()->forward(input);
    });
    model.forward(batches[b].images, {});
    blocks[block]->observe_ffn(nullptr);
    // The same way for both, so that equal outputs are equal bits.
    const at::Tensor& labels = batches[b].labels;
    const ImageScores as_it_is = score_images(run_from(model, blocks, block, stream, y), labels);
    for (std::size_t i = 0; i < interventions.size(); ++i) {
      const at::Tensor instead = interventions[i](x, y);
      if (!instead.defined()) continue;
      const ImageScores with = score_images(run_from(model, blocks, block, stream, instead), labels);
      add_scores({with.loss - as_it_is.loss, with.correct - as_it_is.correct}, labels, b * held_out.classes,
                 changes[i]);
    }
    if (progress) progress(static_cast<double>(b + 1) / static_cast<double>(batches.size()));
  }
  return changes;
}

}  // namespace exfusion
