#include "train/loop.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "core/error.h"
#include "core/log.h"
#include "data/loader.h"
#include "train/checkpoint.h"
#include "train/cost.h"
#include "train/device.h"
#include "train/evaluation.h"
#include "train/export.h"
#include "train/function_difference.h"
#include "train/interrupt.h"
#include "train/memory.h"
#include "train/metrics.h"
#include "train/plan.h"
#include "train/progress.h"
#include "train/step.h"
#include "train/versions.h"

namespace exfusion {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Everything the loop works with.
struct Run {
  const RunConfig& config;
  const RunFolder& folder;
  Datasets data;
  TrainingState state;
  CheckpointInfo record;  // what the next checkpoint will say
  std::int64_t steps_per_epoch = 0, total = 0;
  TrainingCost cost;
  double step_seconds = 0.0;  // of the steps that this process took
  std::int64_t steps_taken = 0, profiled_steps = 0;
};

bool due(std::int64_t step, std::int64_t every) {
  return every > 0 && step % every == 0;
}

void warn_of_difference(const char* name, const std::string& before, const std::string& now) {
  if (before != now)
    log_warning("{} was {} and is {} now: the run goes on, but not bit for bit as it would have", name,
                before, now);
}

// Restores the newest valid checkpoint, if there is one; returns its step, or 0.
std::int64_t restore(Run& run) {
  const std::filesystem::path& checkpoints = run.folder.checkpoints();
  const auto newest = newest_checkpoint(checkpoints);
  if (!newest) return 0;  // rows and events of the steps that were lost must go
  const CheckpointInfo before = load_checkpoint(*newest, run.state);
  if (before.data_checksum != run.data.checksum)
    throw CheckpointError(fmt::format("{}: trained on data with checksum {}, data.root now holds {}",
                                      newest->string(), before.data_checksum, run.data.checksum));
  if (const std::string line = changed_line(before.recipe, run.record.recipe); !line.empty())
    throw CheckpointError(fmt::format("{}: not the recipe of {}: '{}' differs", run.folder.recipe().string(),
                                      newest->string(), line.substr(line.find_first_not_of(' '))));
  warn_of_difference("the number of threads", std::to_string(before.threads),
                     std::to_string(run.record.threads));
  warn_of_difference("libtorch", before.libtorch, run.record.libtorch);
  set_aside_newer(checkpoints, before.step);
  // A kill may have come between a checkpoint and its links.
  link_checkpoint(checkpoints, "latest", before.step);
  if (before.best_step >= 0) link_checkpoint(checkpoints, "best", before.best_step);
  run.record.best_by = before.best_by;
  run.record.best_accuracy = before.best_accuracy;
  run.record.best_step = before.best_step;
  run.record.test_accuracy = before.test_accuracy;
  run.record.test_accuracy_fp32 = before.test_accuracy_fp32;
  run.record.ema_accuracy = before.ema_accuracy;
  return before.step;
}

Evaluation score(Run& run, const Dataset& split, const std::string& precision) {
  return evaluate(*run.state.model, split, run.config.data, run.config.model.vit.classes, precision);
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

// Evaluates at the current step, records, and remembers the best. The last step is also scored in fp32.
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
  save_checkpoint(run.folder.checkpoints(), run.state, run.record);
  if (run.record.best_step == step) link_checkpoint(run.folder.checkpoints(), "best", step);
  prune_checkpoints(run.folder.checkpoints(), run.config.checkpoint.keep);
}

Batch next_batch(Loader& loader, PhaseSeconds& phases) {
  const PhaseScope phase(Phase::data_wait, phases);
  return loader.next();
}

// Returns the signal that stopped it before the last step, or 0.
int train(Run& run, MetricsLog& metrics) {
  const RunConfig& config = run.config;
  const InterruptScope interrupts;
  Loader loader(run.data.train,
                {config.data, config.seed, config.train.global_batch, config.model.vit.classes,
                 run.state.parameters->values().is_cuda()},
                run.state.step, run.total);
  Progress progress(run.state.step, run.total, run.steps_per_epoch, config.train.global_batch,
                    run.cost.flops_per_sample * static_cast<double>(config.train.global_batch),
                    measure_peak_flops(config.train.precision));
  const std::int64_t eval_every =
      config.train.eval_every_steps > 0 ? config.train.eval_every_steps : run.steps_per_epoch;
  Clock::time_point flushed = Clock::now();
  Profile profile(run.profiled_steps, run.folder.path() / "profile.json");

  while (run.state.step < run.total) {
    profile.begin_step();
    const Clock::time_point start = Clock::now();
    PhaseSeconds phases{};
    const Batch batch = next_batch(loader, phases);
    const StepResult result = train_step(config, run.state, batch, run.total, run.steps_per_epoch);
    for (std::size_t i = 0; i < phases.size(); ++i) phases[i] += result.phases[i];
    const double seconds = seconds_since(start);
    const std::int64_t step = run.state.step;
    const bool last = step == run.total;
    run.step_seconds += seconds;
    ++run.steps_taken;
    run.record.test_accuracy = run.record.test_accuracy_fp32 = run.record.ema_accuracy = std::nullopt;

    {
      const PhaseScope phase(Phase::logging, phases);
      if (result.skipped)
        log_warning("step {}: loss {}, gradient norm {}: the step is skipped ({} in a row, {} in all)", step,
                    result.loss, result.grad_norm, run.state.skipped_in_row, run.state.skipped);
      if (due(step, config.train.log_every_steps))
        metrics.train(run.state, result, seconds, loader.wait_seconds());
      progress.update(step, result, seconds);
      if (seconds_since(flushed) > 1.0) {
        metrics.flush();
        flushed = Clock::now();
      }
    }
    profile.end_step(phases);
    if (run.state.skipped_in_row >= config.train.max_skipped)
      throw NonFiniteError(
          fmt::format("step {}: {} steps in a row had a non-finite loss or gradient (train.max_skipped); a "
                      "lower optim.lr, a longer "
                      "warm-up or train.clip may help; --resume goes on from the last checkpoint",
                      step, run.state.skipped_in_row));

    if (due(step, eval_every) || last) evaluate_step(run, metrics);
    const int signal = interrupt_signal();
    if (due(step, config.checkpoint.every_steps) ||
        due(step, config.checkpoint.every_epochs * run.steps_per_epoch) || last || signal != 0 ||
        run.record.best_step == step)
      save(run, metrics);
    if (signal != 0 && !last) return signal;
  }
  return 0;
}

void describe(const Run& run) {
  const RunConfig& config = run.config;
  log_info("{}: {}, {:.2f} M parameters, experts {}", config.name, config.model.arch,
           run.cost.parameters_deployed / 1e6, experts_text(config, run.state));
  log_info("{}", cost_text(run.cost));
  log_info(
      "{}: {} training and {} test images, {} held out; {} steps of {} images ({} per epoch), {} on {}, {} "
      "threads",
      config.data.name, run.data.train->size(), run.data.test->size(),
      run.data.validation ? run.data.validation->size() : 0, run.total, config.train.global_batch,
      run.steps_per_epoch, config.train.precision, config.train.device, run.record.threads);
}

}  // namespace

RunOutcome run_training(const RunConfig& config, const std::string& resolved, const RunFolder& folder,
                        bool resume, std::int64_t profiled_steps) {
  log_to_file((folder.path() / "train.log").string());
  training_device(config.train.device);  // before the work of everything that would be in vain
  log_info("{}", memory_text(config));
  if (config.train.threads > 0) at::set_num_threads(static_cast<int>(config.train.threads));
  if (!resume) folder.write_recipe(resolved, "");  // from here on the folder is a run's, whatever happens
  Run run{.config = config, .folder = folder, .profiled_steps = profiled_steps};
  run.data = make_datasets(config.data, config.seed, config.model.image_shape());
  run.steps_per_epoch = steps_per_epoch(*run.data.train, config.train.global_batch);
  run.total = total_steps(config.train, run.steps_per_epoch);
  run.state = make_training_state(config, !resume || checkpoint_folders(folder.checkpoints()).empty());
  run.record.threads = at::get_num_threads();
  run.record.micro_batch = config.train.micro_batch;
  run.record.precision = config.train.precision;
  run.record.recipe = resolved;
  run.record.data_checksum = run.data.checksum;
  run.record.exfusion = exfusion_version();
  run.record.libtorch = libtorch_version();
  run.record.best_by = run.data.validation ? "validation" : "test";
  run.cost = training_cost(config, run.state);
  describe(run);

  const std::int64_t resumed_at = resume ? restore(run) : -1;
  log_upcycling(config, run.state, *run.data.test, folder.path());
  if (run.state.step > run.total)
    throw CheckpointError(fmt::format("{}: at step {}, beyond the {} steps that the recipe asks for",
                                      folder.path().string(), run.state.step, run.total));
  RunOutcome outcome;
  outcome.already_finished = resumed_at == run.total && run.record.test_accuracy_fp32;
  outcome.exported = folder.path() / "export";
  folder.write_recipe(resolved, run.data.checksum);
  if (resumed_at >= 0) prune_checkpoints(folder.checkpoints(), config.checkpoint.keep);
  if (!outcome.already_finished) {
    // An earlier end's export must not outlive a kill before the next one.
    std::filesystem::remove_all(outcome.exported);
    MetricsLog metrics(folder.path(), config, run.state, resumed_at);
    folder.started();
    outcome.signal = train(run, metrics);
    log_info("peak memory of the process {:.0f} MB", peak_memory() / 1e6);
    // Shortened to where it stood: not yet evaluated as the last step.
    if (outcome.signal == 0 && !run.record.test_accuracy_fp32) {
      evaluate_step(run, metrics);
      save(run, metrics);
    }
  }
  if (outcome.signal == 0 && (!outcome.already_finished || !std::filesystem::exists(outcome.exported)))
    export_model(load_model(folder.path(), "last"), outcome.exported, true);

  outcome.step = run.state.step;
  outcome.accuracy = run.record.test_accuracy.value_or(0.0);
  outcome.accuracy_fp32 = run.record.test_accuracy_fp32.value_or(0.0);
  outcome.best_accuracy = run.record.best_accuracy;
  outcome.best_by = run.record.best_by;
  outcome.skipped = run.state.skipped;
  return outcome;
}

}  // namespace exfusion
