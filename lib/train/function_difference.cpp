#include "train/function_difference.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/log.h"
#include "data/loader.h"
#include "io/files.h"
#include "models/dense_weights.h"
#include "train/start_weights.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;

// The first `count` images of a split -> [count, classes] fp32.
at::Tensor logits_of(Model& model, const RunConfig& config, const Dataset& split, std::int64_t count) {
  constexpr std::int64_t kBatch = 250;
  std::vector<at::Tensor> logits;
  for (std::int64_t first = 0; first < count; first += kBatch) {
    const Batch batch = to_device(evaluation_batch(split, config.data, config.model.vit.classes, first,
                                                   std::min(kBatch, count - first)),
                                  model.parameters().front().device());
    logits.push_back(model.forward(batch.images, {}).cpu());
  }
  return at::cat(logits);
}

nlohmann::json difference_json(const FunctionDifference& difference) {
  return {{"max_logit_difference", difference.largest_logit_difference},
          {"mean_kl", difference.mean_kl},
          {"top1_agreement", difference.top1_agreement}};
}

void log_difference(const char* what, const FunctionDifference& difference, std::int64_t images) {
  log_info(
      "{} against its source, {} test images: logits differ by up to {:.3g}, mean KL {:.3g}, {:.2f} % the "
      "same class",
      what, images, difference.largest_logit_difference, difference.mean_kl,
      100.0 * difference.top1_agreement);
}

}  // namespace

FunctionDifference measure_difference(const at::Tensor& before, const at::Tensor& after) {
  const at::Tensor p = before.to(at::kDouble), q = after.to(at::kDouble);
  const at::Tensor log_p = at::log_softmax(p, 1), log_q = at::log_softmax(q, 1);
  return {.largest_logit_difference = (p - q).abs().max().item<double>(),
          .mean_kl = (log_p.exp() * (log_p - log_q)).sum(1).mean().item<double>(),
          .top1_agreement = p.argmax(1).eq(q.argmax(1)).to(at::kDouble).mean().item<double>()};
}

void log_upcycling(const RunConfig& config, TrainingState& state, const Dataset& test,
                   const fs::path& folder) {
  if (!config.fusion || config.fusion->from.empty() || state.step > 0) return;
  const at::NoGradGuard no_grad;
  const FusionConfig& fusion = *config.fusion;
  const std::int64_t images = std::min<std::int64_t>(1000, test.size());
  const std::string file = find_dense_source(fusion.from).file.string();
  const std::shared_ptr<Model> dense = make_model(config.model, config.seed);
  load_dense_weights(*dense, file, config.init_skip);

  const at::Tensor source = logits_of(*dense, config, test, images);
  const FunctionDifference start = measure_difference(source, logits_of(*state.model, config, test, images));
  const at::Tensor values = state.parameters->values().clone();
  for (ExpertBank& bank : state.banks) bank.fuse();
  const FunctionDifference fused = measure_difference(source, logits_of(*state.model, config, test, images));
  state.parameters->values().copy_(values);
  state.parameters->round_bf16();

  log_difference("the model of step 0", start, images);
  log_difference("the first fusion of its experts", fused, images);
  const nlohmann::json record = {{"from", fusion.from},
                                 {"file", file},
                                 {"crc32", file_crc32(file)},
                                 {"init", fusion.init},
                                 {"experts", fusion.experts},
                                 {"images", images},
                                 {"step_0", difference_json(start)},
                                 {"first_fusion", difference_json(fused)}};
  if (state.group.rank() == 0) write_file(folder / "start.json", record.dump(1) + "\n");
}

}  // namespace exfusion
