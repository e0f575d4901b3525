#include "train/loop.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <optional>

#include "core/duration.h"
#include "core/error.h"
#include "core/log.h"
#include "data/loader.h"
#include "io/files.h"
#include "train/analysis.h"
#include "train/device.h"
#include "train/export.h"
#include "train/function_difference.h"
#include "train/interrupt.h"
#include "train/memory.h"
#include "train/model_source.h"
#include "train/passes.h"
#include "train/plan.h"
#include "train/progress.h"
#include "train/run.h"
#include "train/step.h"
#include "train/versions.h"

namespace exfusion {
namespace {

using Clock = std::chrono::steady_clock;

bool due(std::int64_t step, std::int64_t every) {
  return every > 0 && step % every == 0;
}

Batch next_batch(Loader& loader, PhaseSeconds& phases) {
  const PhaseScope phase(Phase::data_wait, phases);
  return loader.next();
}

// Returns the signal that stopped it before the last step, or 0.
int train(Run& run, MetricsLog& metrics) {
  const RunConfig& config = run.config;
  const InterruptScope interrupts;
  prepare_second_signal(run);
  const auto [first_row, last_row] = rows_of_rank(config, run.state.group.rank(), run.state.group.world());
  Loader loader(run.data.train,
                {config.data, config.seed, config.train.global_batch, config.model.vit.classes,
                 run.state.parameters->values().is_cuda(), first_row, last_row - first_row},
                run.state.step, run.total);
  std::optional<Progress> progress;
  if (run.ranks.lead())
    progress.emplace(run.state.step, run.total, run.steps_per_epoch, config.train.global_batch,
                     run.cost.flops_per_sample * static_cast<double>(config.train.global_batch),
                     measure_peak_flops(config.train.precision) * run.state.group.world());
  const std::int64_t eval_every =
      config.train.eval_every_steps > 0 ? config.train.eval_every_steps : run.steps_per_epoch;
  Clock::time_point flushed = Clock::now();
  Profile profile(run.ranks.lead() ? run.profiled_steps : 0, run.folder.path() / "profile.json");

  watch_symmetry(run, /*checkpoint=*/false);
  while (run.state.step < run.total) {
    profile.begin_step();
    run.ranks.at_step(run.state.step + 1);
    const Clock::time_point start = Clock::now();
    PhaseSeconds phases{};
    const Batch batch = next_batch(loader, phases);
    const StepResult result = train_step(config, run.state, batch, run.total, run.steps_per_epoch);
    for (std::size_t i = 0; i < phases.size(); ++i) phases[i] += result.phases[i];
    const double seconds = seconds_since(start);
    const std::int64_t step = run.state.step;
    const bool last = step == run.total,
               checkpoint = last || due(step, config.checkpoint.every_steps) ||
                            due(step, config.checkpoint.every_epochs * run.steps_per_epoch);
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
      if (progress) progress->update(step, result, seconds);
      if (seconds_since(flushed) > 1.0) {
        metrics.flush();
        flushed = Clock::now();
      }
    }
    if (config.analysis.due(step, checkpoint, last)) {
      const PhaseScope phase(Phase::analysis, phases);
      analyse_step(run, metrics);
    }
    profile.end_step(phases);
    if (run.state.skipped_in_row >= config.train.max_skipped)
      throw NonFiniteError(
          fmt::format("step {}: {} steps in a row had a non-finite loss or gradient (train.max_skipped); a "
                      "lower optim.lr, a longer "
                      "warm-up or train.clip may help; --resume goes on from the last checkpoint",
                      step, run.state.skipped_in_row));

    if (due(step, eval_every) || last) {
      run.ranks.at("evaluation");
      evaluate_step(run, metrics);
    }
    watch_symmetry(run, checkpoint);
    const int signal = run.state.group.alone() ? interrupt_signal() : result.signal;
    if (checkpoint || signal != 0 || run.record.best_step == step) {
      run.ranks.at("checkpoint");
      save(run, metrics);
    }
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

// Before the first sums over ranks: what was not known yet when they met must be the same too.
void check_ranks(Run& run) {
  run.ranks.check_same(
      {{"data", run.data.checksum},
       {"threads", run.config.dist.deterministic() ? std::to_string(at::get_num_threads()) : "any"}});
  run.shared_folder = run.ranks.share_folder(run.folder.path());
  if (!run.ranks.lead())
    log_to_file((run.folder.path() / fmt::format("train.rank-{:03}.log", run.ranks.group().rank())).string());
}

}  // namespace

RunOutcome run_training(const RunConfig& config, const std::string& resolved, const RunFolder& folder,
                        bool resume, std::int64_t profiled_steps, const Ranks& ranks) {
  const bool lead = ranks.lead();
  if (lead) log_to_file((folder.path() / "train.log").string());
  training_device(config.train.device);  // before the work of everything that would be in vain
  rows_of_rank(config, ranks.group().rank(), ranks.group().world());
  log_info("{}", memory_text(config, ranks.group().world()));
  if (lead && !resume)
    folder.write_recipe(resolved, "");  // from here on the folder is a run's, whatever happens
  Run run{.config = config, .folder = folder, .ranks = ranks, .profiled_steps = profiled_steps};
  run.data = make_datasets(config.data, config.seed, config.model.image_shape());
  check_ranks(run);
  run.steps_per_epoch = steps_per_epoch(*run.data.train, config.train.global_batch);
  run.total = total_steps(config.train, run.steps_per_epoch);
  run.state = make_training_state(
      config, ranks.agree(!resume || checkpoint_folders(folder.checkpoints()).empty()), ranks.group());
  run.record.threads = at::get_num_threads();
  run.record.micro_batch = config.train.micro_batch;
  run.record.precision = config.train.precision;
  run.record.recipe = resolved;
  run.record.world = ranks.group().world();
  run.record.reduction = config.dist.reduction;
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
  if (lead || !run.shared_folder) folder.write_recipe(resolved, run.data.checksum);
  if (lead && resumed_at >= 0) prune_checkpoints(folder.checkpoints(), config.checkpoint.keep);
  if (!outcome.already_finished) {
    // An earlier end's export must not outlive a kill before the next one.
    if (lead) std::filesystem::remove_all(outcome.exported);
    MetricsLog metrics(folder.path(), config, run.state, analysis_groups(run), resumed_at, lead);
    if (lead) folder.started();
    outcome.signal = train(run, metrics);
    if (run.analysis_seconds > 0.0)
      log_info("analysis took {:.2f} s beside {:.2f} s of steps", run.analysis_seconds, run.step_seconds);
    log_info("peak memory of the process {:.0f} MB", peak_memory() / 1e6);
    // Shortened to where it stood: not yet evaluated as the last step.
    if (outcome.signal == 0 && !run.record.test_accuracy_fp32) {
      evaluate_step(run, metrics);
      save(run, metrics);
    }
  }
  ranks.at("export");
  if (lead && outcome.signal == 0 &&
      (!outcome.already_finished || !std::filesystem::exists(outcome.exported)))
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
