#include "train/analysis.h"

#include <algorithm>
#include <chrono>

#include "core/allocation.h"
#include "core/duration.h"
#include "core/log.h"
#include "observe/fused_sets.h"
#include "observe/held_out.h"
#include "train/symmetry_alarm.h"

namespace exfusion {
namespace {

constexpr std::int64_t kFirstAlarm = 100;  // steps: enough for a moving a to move experts

const Dataset& held_out(const Run& run) {
  return run.data.validation ? *run.data.validation : *run.data.test;
}

ObservationSize size_of(const Run& run) {
  const AnalysisConfig& config = run.config.analysis;
  const std::int64_t batches = (held_out(run).size() + config.batch - 1) / config.batch;
  return {std::min(config.batches, batches), run.config.model.vit.classes};
}

}  // namespace

std::vector<ObservedGroup> analysis_groups(const Run& run) {
  if (!run.config.analysis.on()) return {};
  const auto sets = fused_sets(*run.state.model, run.state.banks);
  if (std::ranges::any_of(sets, [](const FusedSet& set) { return !set.whole(); }))
    log_info("analysis: the experts are sharded (dist.shard): what needs whole ones is not measured");
  return observe_model(*run.state.model, sets, {}, run.config.analysis, size_of(run));
}

void analyse_step(Run& run, MetricsLog& metrics) {
  const auto start = std::chrono::steady_clock::now();
  const AnalysisConfig& config = run.config.analysis;
  const ObservationSize size = size_of(run);
  if (run.held_out.empty())
    run.held_out = held_out_batches(held_out(run), run.config.data, size.classes, size.batches, config.batch);
  const auto sets = fused_sets(*run.state.model, run.state.banks);
  metrics.analysis(run.state.step, observe_model(*run.state.model, sets, run.held_out, config, size));
  run.analysis_seconds += seconds_since(start);
}

void watch_symmetry(Run& run, bool checkpoint) {
  const std::int64_t step = run.state.step;
  if (run.state.banks.empty() || run.state.banks.front().experts() < 2 || run.symmetry_stated) return;
  if (constant_weights(*run.config.fusion)) {
    log_info(
        "fusion: the weights of the experts are constant: their differences stay those of the start but for "
        "weight decay, and the experts learn nothing of their own (docs/theory.md)");
    run.symmetry_stated = true;
    return;
  }
  if (step != kFirstAlarm && !(checkpoint && step > kFirstAlarm)) return;
  if (!run.ranks.lead() && run.state.banks.front().shard().whole()) return;
  const std::string text = frozen_text(run.state);
  give_back_freed_memory();  // the experts of the start, drawn once more
  if (text.empty()) return;
  log_warning("step {}: {}", step, text);
  run.symmetry_stated = true;
}

}  // namespace exfusion
