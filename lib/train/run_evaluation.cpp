#include <fmt/format.h>

#include <algorithm>

#include "core/log.h"
#include "train/evaluation.h"
#include "train/interrupt.h"
#include "train/run.h"

namespace exfusion {
namespace {

Evaluation score(Run& run, const Dataset& split, const std::string& precision) {
  return evaluate(*run.state.model, split, run.config.data, run.config.model.vit.classes, precision, nullptr,
                  run.state.group);
}

// The test set with the weights that training's forward pass would use: the collapse gap. Where these are the
// collapse weights, the evaluation of the collapsed model is that of training.
void measure_gap(Run& run, MetricsLog& metrics, const Evaluation& collapsed) {
  std::deque<ExpertBank>& banks = run.state.banks;
  Evaluation training = collapsed;
  if (std::any_of(banks.begin(), banks.end(), [](const ExpertBank& b) { return b.differs_in_training(); })) {
    for (ExpertBank& bank : banks) bank.begin_preview(run.state.step);
    training = score(run, *run.data.test, run.config.train.precision);
    for (ExpertBank& bank : banks) bank.end_preview();
    log_info("step {}: collapse gap: accuracy {:+.4f}, loss {:+.4f}", run.state.step,
             collapsed.accuracy - training.accuracy, collapsed.loss - training.loss);
  }
  metrics.collapse_gap(run.state.step, collapsed, training);
}

}  // namespace

void evaluate_step(Run& run, MetricsLog& metrics) {
  const std::int64_t step = run.state.step;
  const std::string& precision = run.config.train.precision;
  const Evaluation test = score(run, *run.data.test, precision);
  metrics.evaluation("eval", step, test);
  run.record.test_accuracy = test.accuracy;
  if (precision == "fp32")
    run.record.test_accuracy_fp32 = test.accuracy;
  else if (step == run.total)
    run.record.test_accuracy_fp32 = score(run, *run.data.test, "fp32").accuracy;
  log_info("step {}: test accuracy {:.4f}, loss {:.4f} ({} images, {})", step, test.accuracy, test.loss,
           test.samples, precision);
  const double samples = static_cast<double>(run.steps_taken * run.config.train.global_batch);
  metrics.cost(step, run.cost, run.step_seconds > 0.0 ? samples / run.step_seconds : 0.0);
  if (!run.state.banks.empty()) {
    metrics.experts(run.state);
    measure_gap(run, metrics, test);
  }

  double deciding = test.accuracy;
  if (run.data.validation) {
    const Evaluation validation = score(run, *run.data.validation, precision);
    metrics.evaluation("validation", step, validation);
    log_info("step {}: validation accuracy {:.4f}, loss {:.4f}", step, validation.accuracy, validation.loss);
    deciding = validation.accuracy;
  }
  if (run.state.ema) {
    run.state.ema->swap();
    const Evaluation average = score(run, *run.data.test, precision);
    if (run.data.validation)
      metrics.evaluation("ema_validation", step, score(run, *run.data.validation, precision));
    run.state.ema->swap();
    metrics.evaluation("ema", step, average);
    run.record.ema_accuracy = average.accuracy;
    log_info("step {}: weight average: test accuracy {:.4f}, loss {:.4f}", step, average.accuracy,
             average.loss);
  }
  if (deciding > run.record.best_accuracy) {
    run.record.best_accuracy = deciding;
    run.record.best_step = step;
  }
}

void save(Run& run, MetricsLog& metrics) {
  const std::int64_t step = run.state.step;
  run.record.epoch = step / run.steps_per_epoch;
  run.record.samples = step * run.config.train.global_batch;
  metrics.flush();  // rows up to here must be there when the checkpoint is
  prepare_second_signal(run, (run.folder.checkpoints() / checkpoint_name(step)).string() + ".tmp");
  save_checkpoint(run.folder.checkpoints(), run.state, run.record, run.shared_folder);
  prepare_second_signal(run);
  if (!run.ranks.lead()) return;
  if (run.record.best_step == step) link_checkpoint(run.folder.checkpoints(), "best", step);
  prune_checkpoints(run.folder.checkpoints(), run.config.checkpoint.keep);
}

void prepare_second_signal(const Run& run, const std::string& left_behind) {
  if (!run.ranks.lead()) return;
  const std::string left =
      left_behind.empty() ? "" : fmt::format("; {} may be left, the next start removes it", left_behind);
  set_words_at_second_signal(fmt::format(
      "exfusion-train: stopped at once: the steps since the last checkpoint are lost{}; go on with: {}", left,
      run.ranks.resume_command(run.folder.path())));
}

}  // namespace exfusion
