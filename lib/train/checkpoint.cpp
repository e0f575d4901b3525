#include "train/checkpoint.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "core/error.h"
#include "io/exact_tensors.h"
#include "io/files.h"
#include "train/checkpoint_exchange.h"
#include "train/state_json.h"

namespace exfusion {
namespace {
namespace fs = std::filesystem;

void append(TensorParts& parts, TensorParts more) {
  std::ranges::move(more, std::back_inserter(parts));
}

void append(TensorParts& parts, const NamedTensors& whole) {
  for (const auto& [name, values] : whole) parts.push_back({.name = name, .values = values});
}

// The files of a checkpoint with what this rank holds of the tensors that belong in each.
std::vector<std::pair<std::string, TensorParts>> checkpoint_files(const TrainingState& state) {
  TensorParts model, experts, optimizer, average;
  append(model, model_tensors(*state.model));
  append(optimizer, state.dense->parts());
  for (const ExpertBank& bank : state.banks) {
    append(experts, bank.expert_parts());
    append(optimizer, bank.optimizer_parts());
  }
  std::vector<std::pair<std::string, TensorParts>> files;
  files.emplace_back("model.safetensors", std::move(model));
  if (!experts.empty()) files.emplace_back("experts.safetensors", std::move(experts));
  files.emplace_back("optimizer.safetensors", std::move(optimizer));
  if (state.ema) {
    // The average of the parameters, and what else the model keeps: it loads as model.safetensors does.
    append(average, state.ema->state());
    for (const auto& item : state.model->named_buffers())
      average.push_back({.name = item.key(), .values = item.value()});
    files.emplace_back("ema.safetensors", std::move(average));
  }
  return files;
}

CheckpointRanks ranks_of(const TrainingState& state, bool shared) {
  return {.group = state.group, .device = state.parameters->values().device(), .shared = shared};
}

// The routers' Jacobians of the last step, which are parts of a sum over ranks unless the reduction is
// deterministic.
std::vector<at::Tensor> jacobians(const TrainingState& state) {
  std::vector<at::Tensor> found;
  for (const ExpertBank& bank : state.banks) {
    if (bank.router() && bank.router()->last_jacobian().defined())
      found.push_back(bank.router()->last_jacobian());
  }
  return found;
}

// Puts the sums in the place of the parts; what the state holds stays.
void sum_jacobians(const TrainingState& state, TensorParts& parts) {
  const CheckpointRanks ranks = ranks_of(state, true);
  for (const at::Tensor& jacobian : jacobians(state)) {
    const at::Tensor sum = jacobian.to(ranks.device, /*non_blocking=*/false, /*copy=*/true);
    ranks.group.all_reduce(sum);
    for (TensorPart& part : parts) {
      if (part.values.is_same(jacobian)) part.values = sum;
    }
  }
}

void fill_in(const TrainingState& state, CheckpointInfo& info) {
  info.step = state.step;
  info.updates = state.updates;
  info.skipped = state.skipped;
  info.skipped_in_row = state.skipped_in_row;
  info.decay_product = state.decay_product;
  info.recipe_crc32 = text_crc32(info.recipe);
}

// Rank 0: what state.json says, after all checks; `opened` receives the files in the order of `files`.
StateRecord open_checkpoint(const fs::path& checkpoint,
                            const std::vector<std::pair<std::string, TensorParts>>& files,
                            std::vector<SafetensorsFile>& opened) {
  StateRecord record = checked_state(checkpoint);
  for (const auto& [name, entry] : record.files) {
    if (std::ranges::none_of(files, [&](const auto& file) { return file.first == name; }))
      throw CheckpointError(fmt::format("{}: does not belong to this recipe", (checkpoint / name).string()));
  }
  for (const auto& [name, parts] : files) {
    const std::string file = (checkpoint / name).string();
    if (!record.files.contains(name))
      throw CheckpointError(fmt::format("{}: state.json does not list it, and the recipe needs it", file));
    expect_exactly(opened.emplace_back(file), parts);
  }
  return record;
}

}  // namespace

std::string checkpoint_name(std::int64_t step) {
  return fmt::format("step-{:08d}", step);
}

void save_checkpoint(const fs::path& checkpoints, const TrainingState& state, CheckpointInfo info,
                     bool shared) {
  const at::NoGradGuard no_grad;
  const CheckpointRanks ranks = ranks_of(state, shared);
  fill_in(state, info);
  const fs::path final_path = checkpoints / checkpoint_name(state.step);
  std::optional<PendingFolder> folder;
  if (ranks.group.rank() == 0) folder.emplace(final_path);
  const fs::path temporary = folder ? folder->path() : fs::path(final_path.string() + ".tmp");

  StateRecord record{.info = std::move(info), .files = {}};
  auto files = checkpoint_files(state);
  for (auto& [name, parts] : files) {
    if (name == "optimizer.safetensors" && record.info.reduction == "fast") sum_jacobians(state, parts);
    record.files[name] = write_file_of_ranks(ranks, temporary / name, parts, {{"format", "pt"}});
    fault_point("checkpoint-file");
  }
  if (folder) {
    write_file(temporary / "state.json", state_text(record));
    folder->commit();
    fault_point("checkpoint-committed");
    link_checkpoint(checkpoints, "latest", state.step);
  }
  ranks.group.barrier();  // it counts, on every rank
}

CheckpointInfo load_checkpoint(const fs::path& checkpoint, TrainingState& state, bool deterministic) {
  const at::NoGradGuard no_grad;
  const CheckpointRanks ranks = ranks_of(state, true);
  const auto files = checkpoint_files(state);
  std::vector<SafetensorsFile> opened;
  const std::string text =
      text_of_rank_0(ranks, [&] { return state_text(open_checkpoint(checkpoint, files, opened)); });
  const CheckpointInfo info = parse_state(text, checkpoint / "state.json").info;
  for (std::size_t i = 0; i < files.size(); ++i)
    read_file_of_ranks(ranks, opened.empty() ? nullptr : &opened[i], files[i].second);

  state.step = info.step;
  state.updates = info.updates;
  state.skipped = info.skipped;
  state.skipped_in_row = info.skipped_in_row;
  state.decay_product = info.decay_product;
  for (ExpertBank& bank : state.banks) bank.restored();
  if (!deterministic && ranks.group.rank() != 0) {
    for (const at::Tensor& jacobian : jacobians(state)) jacobian.zero_();  // rank 0 holds the sum
  }
  state.parameters->round_bf16();
  return info;
}

}  // namespace exfusion
