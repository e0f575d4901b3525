#include "train/evaluation.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <vector>

#include "core/duration.h"
#include "data/loader.h"
#include "dist/leaf_tree.h"
#include "train/precision.h"

namespace exfusion {

constexpr std::int64_t kEvaluationBatch = 250;

Evaluation evaluate(Model& model, const Dataset& split, const DataConfig& data, std::int64_t classes,
                    const std::string& precision, at::Tensor* logits, const ProcessGroup& group) {
  const at::NoGradGuard no_grad;
  const bool training = model.is_training();
  model.eval();
  const auto start = std::chrono::steady_clock::now();
  const c10::Device device = model.parameters().front().device();
  Evaluation result;
  const std::int64_t batches = (split.size() + kEvaluationBatch - 1) / kEvaluationBatch;
  // Loss and correct answers of each batch: everyone adds them in the same order.
  std::vector<double> scores(static_cast<std::size_t>(2 * batches));
  if (logits) *logits = at::empty({split.size(), classes}, at::kFloat);
  const auto [first_batch, last_batch] = leaves_of_rank(batches, group.rank(), group.world());
  for (std::int64_t i = first_batch; i < last_batch; ++i) {
    const std::int64_t first = i * kEvaluationBatch;
    const std::int64_t count = std::min(kEvaluationBatch, split.size() - first);
    const Batch batch = to_device(evaluation_batch(split, data, classes, first, count), device);
    at::Tensor out;
    {
      PrecisionScope scope(precision, device.type());
      out = model.forward(batch.images, {}).to(at::kFloat);
    }
    const at::Tensor labels = batch.targets.argmax(1);
    double* score = scores.data() + 2 * i;
    score[0] = at::cross_entropy_loss(out, labels, {}, at::Reduction::Sum).item<double>();
    score[1] = static_cast<double>(out.argmax(1).eq(labels).sum().item<std::int64_t>());
    if (logits) logits->narrow(0, first, count).copy_(out);
  }
  model.train(training);
  group.sum(scores);
  double loss = 0.0, correct = 0.0;
  for (std::int64_t i = 0; i < batches; ++i) {
    loss += scores[static_cast<std::size_t>(2 * i)];
    correct += scores[static_cast<std::size_t>(2 * i) + 1];
  }
  result.samples = split.size();
  result.accuracy = correct / static_cast<double>(split.size());
  result.loss = loss / static_cast<double>(split.size());
  result.seconds = seconds_since(start);
  return result;
}

}  // namespace exfusion
