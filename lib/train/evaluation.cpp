#include "train/evaluation.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>

#include "data/loader.h"
#include "train/precision.h"

namespace exfusion {

constexpr std::int64_t kEvaluationBatch = 250;

Evaluation evaluate(Model& model, const Dataset& split, const DataConfig& data, std::int64_t classes,
                    const std::string& precision, at::Tensor* logits) {
  const at::NoGradGuard no_grad;
  const bool training = model.is_training();
  model.eval();
  const auto start = std::chrono::steady_clock::now();
  const c10::Device device = model.parameters().front().device();
  Evaluation result;
  double loss = 0.0;
  std::int64_t correct = 0;
  if (logits) *logits = at::empty({split.size(), classes}, at::kFloat);
  for (std::int64_t first = 0; first < split.size(); first += kEvaluationBatch) {
    const std::int64_t count = std::min(kEvaluationBatch, split.size() - first);
    const Batch batch = to_device(evaluation_batch(split, data, classes, first, count), device);
    at::Tensor out;
    {
      PrecisionScope scope(precision, device.type());
      out = model.forward(batch.images, {}).to(at::kFloat);
    }
    const at::Tensor labels = batch.targets.argmax(1);
    loss += at::cross_entropy_loss(out, labels, {}, at::Reduction::Sum).item<double>();
    correct += out.argmax(1).eq(labels).sum().item<std::int64_t>();
    if (logits) logits->narrow(0, first, count).copy_(out);
  }
  model.train(training);
  result.samples = split.size();
  result.accuracy = static_cast<double>(correct) / static_cast<double>(split.size());
  result.loss = loss / static_cast<double>(split.size());
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace exfusion
