// One FFN of a model gives something else, and the model runs on from there: loss (cross entropy) and right
// answers of held-out images with and without.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <vector>

#include "analysis/causal.h"
#include "nn/block.h"
#include "observe/held_out.h"

namespace exfusion {

class Model;

// What stands in for an FFN's output y at its input x, both [n, tokens, dim]; undefined: y stays.
using Intervention = std::function<at::Tensor(const at::Tensor& x, const at::Tensor& y)>;
Intervention with_weights(FfnTensors tensors);

struct ImageScores {
  at::Tensor loss, correct;  // [n] double
};
ImageScores score_images(const at::Tensor& logits, const at::Tensor& labels);

// Sums by batch and class: of nothing yet; and with the scores of a batch added, whose first class is at
// `first`.
analysis::ImageSums zero_sums(const analysis::HeldOutImages& held_out);
void add_scores(const ImageScores& scores, const at::Tensor& labels, std::size_t first,
                analysis::ImageSums& to);

// The images, and the model as it is.
analysis::HeldOutImages unchanged_model(Model& model, const std::vector<HeldOutBatch>& batches,
                                        std::int64_t classes);

// The model's logits if the FFN of `block` gave y; `stream`, what y is added to.
at::Tensor run_from(Model& model, const std::vector<std::shared_ptr<Block>>& blocks, std::size_t block,
                    const at::Tensor& stream, const at::Tensor& y);

// What each intervention on the FFN of `block` changes, of blocks that are observed (observed_blocks.h).
// `progress` gets the part of the batches that is done.
std::vector<analysis::ImageSums> measure_interventions(
    Model& model, const std::vector<std::shared_ptr<Block>>& blocks, std::size_t block,
    const std::vector<HeldOutBatch>& batches, const analysis::HeldOutImages& held_out,
    const std::vector<Intervention>& interventions, const std::function<void(double)>& progress = {});

}  // namespace exfusion
