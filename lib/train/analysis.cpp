#include "train/analysis.h"

#include <ATen/ATen.h>

#include <fmt/ranges.h>

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

// Everyone receives what the owners of the other blocks found. Copies, and no sums: the same bytes.
void exchange(std::vector<ObservedGroup>& groups, const BlockShare& share, const ProcessGroup& ranks) {
  if (ranks.alone()) return;
  std::vector<std::vector<double>*> columns;  // by owner
  std::vector<std::int64_t> cuts = {0};
  for (std::int64_t owner = 0, size = 0; owner < share.world; ++owner) {
    for (ObservedGroup& group : groups) {
      if (share.owner(group.block) != owner) continue;
      for (ObservedColumn& column : group.columns) {
        columns.push_back(&column.values);
        size += static_cast<std::int64_t>(column.values.size());
      }
    }
    cuts.push_back(size);
  }
  std::vector<double> all;
  for (const std::vector<double>* one : columns) all.insert(all.end(), one->begin(), one->end());
  ranks.all_gather(at::from_blob(all.data(), {cuts.back()}, at::kDouble), cuts);
  auto next = all.cbegin();
  for (std::vector<double>* one : columns) {
    std::copy_n(next, one->size(), one->begin());
    next += static_cast<std::ptrdiff_t>(one->size());
  }
}

}  // namespace

std::vector<ObservedGroup> analysis_groups(const Run& run) {
  if (!run.config.analysis.on()) return {};
  const auto sets = fused_sets(*run.state.model, run.state.banks);
  if (std::ranges::any_of(sets, [](const FusedSet& set) { return !set.whole(); }))
    log_info("analysis: the experts are sharded (dist.shard): what needs whole ones is not measured");
  std::vector<ObservedGroup> groups =
      observe_model(*run.state.model, sets, {}, run.config.analysis, size_of(run));
  if (groups.empty())
    log_warning("analysis.groups: nothing of {} applies to this model",
                fmt::join(run.config.analysis.groups, ", "));
  return groups;
}

void analyse_step(Run& run, MetricsLog& metrics) {
  const auto start = std::chrono::steady_clock::now();
  const AnalysisConfig& config = run.config.analysis;
  const ObservationSize size = size_of(run);
  if (run.held_out.empty())
    run.held_out = held_out_batches(held_out(run), run.config.data, size.classes, size.batches, config.batch);
  const auto sets = fused_sets(*run.state.model, run.state.banks);
  const BlockShare share{run.state.group.rank(), run.state.group.world()};
  std::vector<ObservedGroup> groups =
      observe_model(*run.state.model, sets, run.held_out, config, size, share);
  exchange(groups, share, run.state.group);
  metrics.analysis(run.state.step, groups);
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
