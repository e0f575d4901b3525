#include "train/step.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "fusion/bank_updates.h"
#include "nn/ffn.h"
#include "optim/device.h"
#include "optim/reduction.h"
#include "train/device.h"
#include "train/interrupt.h"
#include "train/passes.h"

namespace exfusion {
namespace {

// Calls add(i, begin, end) for what this rank adds of slot i to sums over ranks: its elements [begin, end) of
// the flat buffers. What everyone has is rank 0's to add.
void for_each_part(const TrainingState& state,
                   const std::function<void(std::size_t, std::int64_t, std::int64_t)>& add) {
  const auto& slots = state.parameters->slots();
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (!state.exchange->sharded(slots[i].offset) && state.group.rank() != 0) continue;
    const auto [begin, end] = state.exchange->owned(slots[i].offset, slots[i].offset + slots[i].size);
    add(i, begin, end);
  }
}

// The norm of all gradients, of which each rank may hold a part.
double gradient_norm(const TrainingState& state) {
  const at::Tensor gradients = state.parameters->gradients();
  const auto* g = gradients.const_data_ptr<float>();
  const auto& slots = state.parameters->slots();
  const bool sharded = std::ranges::any_of(
      slots, [&](const ParameterSlot& slot) { return state.exchange->sharded(slot.offset); });
  if (!sharded) return std::sqrt(sum_of_squares_on(gradients.device(), g, gradients.numel()));
  std::vector<double> sum = {0.0};
  for_each_part(state, [&](std::size_t, std::int64_t begin, std::int64_t end) {
    sum[0] += sum_of_squares_on(gradients.device(), g + begin, end - begin);
  });
  state.group.sum(sum);
  return std::sqrt(sum[0]);
}

// The same with bits that do not depend on who holds what: every block of a tensor is summed by one rank, and
// everyone adds the blocks in the same order.
double deterministic_gradient_norm(const TrainingState& state) {
  const auto* g = state.parameters->gradients().const_data_ptr<float>();
  const auto& slots = state.parameters->slots();
  std::vector<std::int64_t> starts = {0};  // of the slots' blocks
  for (const ParameterSlot& slot : slots)
    starts.push_back(starts.back() + (slot.size + kReductionBlock - 1) / kReductionBlock);
  std::vector<double> sums(static_cast<std::size_t>(starts.back()));
  for_each_part(state, [&](std::size_t i, std::int64_t begin, std::int64_t end) {
    block_squares(g + begin, end - begin,
                  sums.data() + starts[i] + (begin - slots[i].offset) / kReductionBlock);
  });
  state.group.sum(sums);
  double sum = 0.0;
  for (std::size_t i = 0; i < slots.size(); ++i)
    sum += sum_blocks(sums.data() + starts[i], starts[i + 1] - starts[i]);
  return std::sqrt(sum);
}

// What the owners of sharded dense parameters have updated.
void gather_dense(const TrainingState& state) {
  const auto& slots = state.parameters->slots();
  const std::size_t dense = slots.size() - state.banks.size() * kFfnTensors.size();
  if (dense == 0 || !state.exchange->sharded(slots[0].offset)) return;
  const std::int64_t end = slots[dense - 1].offset + slots[dense - 1].size;
  wait_for(state.exchange->start_gather(state.parameters->values(), 0, end));
  state.parameters->round_bf16(0, end);
}

// The end of a step whose gradients and loss are complete: skips it or updates everything.
void update_or_skip(const RunConfig& config, TrainingState& state, std::int64_t step, std::int64_t total,
                    std::int64_t steps_per_epoch, StepResult& result) {
  const PhaseScope phase(Phase::update, result.phases, &state.group);
  const AdamWConfig& optim = config.optim;
  ++state.step;
  if (!std::isfinite(result.loss) || !std::isfinite(result.grad_norm)) {
    ++state.skipped;
    ++state.skipped_in_row;
    result.skipped = true;
    for (ExpertBank& bank : state.banks) bank.abandon_step();
    return;
  }
  state.skipped_in_row = 0;
  ++state.updates;
  state.decay_product *= 1.0 - result.lr * optim.weight_decay;
  const double clip = config.train.clip;
  const auto scale = static_cast<float>(clip > 0.0 ? std::min(1.0, clip / (result.grad_norm + 1e-6)) : 1.0);

  state.dense->step(optim, result.lr, state.updates, scale);
  gather_dense(state);
  if (config.fusion) {
    const FusionConfig& fusion = *config.fusion;
    const double weights_lr =
        fusion.lr.value_or(optim.lr) *
        schedule_factor(fusion.schedule.value_or(optim.schedule), step, total, steps_per_epoch);
    update_banks(state.banks, {optim, result.lr, weights_lr, state.updates, scale}, state.group,
                 /*whole_jacobians=*/config.dist.deterministic());
  }
  const double progress = std::min(1.0, static_cast<double>(state.step) / static_cast<double>(total));
  for (const auto& ffn : state.feed_forwards) ffn->after_update(progress);
  if (state.ema) state.ema->update();
}

}  // namespace

StepResult train_step(const RunConfig& config, TrainingState& state, const Batch& given, std::int64_t total,
                      std::int64_t steps_per_epoch) {
  const Batch batch = to_device(given, state.parameters->values().device());
  StepResult result;
  const AdamWConfig& optim = config.optim;
  result.lr = optim.lr * schedule_factor(optim.schedule, state.step, total, steps_per_epoch);

  {
    const PhaseScope phase(Phase::update, result.phases);
    state.parameters->zero_gradients();
    for (ExpertBank& bank : state.banks) bank.begin_step(state.step, batch.all);
  }
  run_passes(config, state, batch, interrupt_signal(), result);
  {
    const PhaseScope phase(Phase::clip, result.phases, &state.group);
    result.grad_norm =
        config.dist.deterministic() ? deterministic_gradient_norm(state) : gradient_norm(state);
  }
  update_or_skip(config, state, batch.step, total, steps_per_epoch, result);
  return result;
}

}  // namespace exfusion
