#include <fmt/format.h>

#include "core/allocation.h"
#include "core/error.h"
#include "core/log.h"
#include "train/checkpoint_exchange.h"
#include "train/run.h"

namespace exfusion {
namespace {

void warn_of_difference(const char* name, const std::string& before, const std::string& now) {
  if (before != now)
    log_warning("{} was {} and is {} now: the run goes on, but not bit for bit as it would have", name,
                before, now);
}

// What a kill may have left behind around the checkpoint that the run goes on from.
void put_in_order(const Run& run, const CheckpointInfo& before) {
  warn_of_difference("the number of threads", std::to_string(before.threads),
                     std::to_string(run.record.threads));
  if (!run.config.dist.deterministic())
    warn_of_difference("the number of ranks", std::to_string(before.world), std::to_string(run.record.world));
  warn_of_difference("libtorch", before.libtorch, run.record.libtorch);
  const std::filesystem::path checkpoints = run.folder.checkpoints();
  set_aside_newer(checkpoints, before.step);
  // A kill may have come between a checkpoint and its links.
  link_checkpoint(checkpoints, "latest", before.step);
  if (before.best_step >= 0) link_checkpoint(checkpoints, "best", before.best_step);
}

}  // namespace

std::int64_t restore(Run& run) {
  const std::filesystem::path checkpoints = run.folder.checkpoints();
  const CheckpointRanks ranks{.group = run.state.group, .device = run.state.parameters->values().device()};
  const std::filesystem::path newest = text_of_rank_0(ranks, [&] {
    const auto found = newest_checkpoint(checkpoints);
    return found ? found->string() : std::string();
  });
  if (newest.empty()) {  // rows and events of the steps that were lost must go
    log_info("{}: no whole checkpoint yet, so from the start", run.folder.path().string());
    return 0;
  }
  const CheckpointInfo before = load_checkpoint(newest, run.state, run.config.dist.deterministic());
  if (before.data_checksum != run.data.checksum)
    throw CheckpointError(fmt::format("{}: trained on data with checksum {}, data.root now holds {}",
                                      newest.string(), before.data_checksum, run.data.checksum));
  if (const std::string line = changed_line(before.recipe, run.record.recipe); !line.empty())
    throw CheckpointError(fmt::format("{}: not the recipe of {}: '{}' differs", run.folder.recipe().string(),
                                      newest.string(), line.substr(line.find_first_not_of(' '))));
  if (run.config.dist.deterministic() && before.reduction == "deterministic" &&
      before.threads != run.record.threads)
    throw CheckpointError(
        fmt::format("{}: deterministic with {} threads per rank, and {} now: with those the same bits "
                    "are not to be had (dist.threads, train.threads)",
                    run.folder.path().string(), before.threads, run.record.threads));
  if (run.ranks.lead()) put_in_order(run, before);
  run.record.best_by = before.best_by;
  run.record.best_accuracy = before.best_accuracy;
  run.record.best_step = before.best_step;
  run.record.test_accuracy = before.test_accuracy;
  run.record.test_accuracy_fp32 = before.test_accuracy_fp32;
  run.record.ema_accuracy = before.ema_accuracy;
  give_back_freed_memory();  // whole tensors on rank 0
  return before.step;
}

}  // namespace exfusion
