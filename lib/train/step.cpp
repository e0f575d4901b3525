#include "train/step.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <unordered_map>

#include "fusion/collapsed_static.h"
#include "nn/drop_path.h"
#include "nn/ffn.h"
#include "nn/layers.h"
#include "optim/device.h"
#include "train/device.h"
#include "train/precision.h"
#include "train/start_weights.h"

namespace exfusion {
namespace {

// Dense parameters in the order decayed, not decayed; then the four tensors of each fused FFN.
std::vector<ParameterSlot> order_parameters(const Model& model, const std::vector<NamedFfn>& fused) {
  std::vector<ParameterSlot> decayed, plain, experts;
  for (const auto& item : model.named_parameters()) {
    ParameterSlot slot{.name = item.key(), .parameter = item.value(), .decay = model.decays(item.key())};
    const bool in_bank = std::any_of(fused.begin(), fused.end(), [&](const NamedFfn& ffn) {
      return item.key().starts_with(ffn.name + ".");
    });
    (in_bank ? experts : slot.decay ? decayed : plain).push_back(std::move(slot));
  }
  decayed.insert(decayed.end(), plain.begin(), plain.end());
  decayed.insert(decayed.end(), experts.begin(), experts.end());
  return decayed;
}

// The copies of the parameters in bf16, kept by the update, for the layers that read them.
void keep_bf16_copies(FlatParameters& parameters, const Model& model) {
  parameters.keep_bf16();
  std::unordered_map<const void*, at::Tensor> copies;
  for (const ParameterSlot& slot : parameters.slots()) {
    copies[slot.parameter.unsafeGetTensorImpl()] =
        parameters.bf16_values().narrow(0, slot.offset, slot.size).view(slot.parameter.sizes());
  }
  for (const auto& module : model.modules(/*include_self=*/false)) {
    if (auto* layer = dynamic_cast<Linear*>(module.get())) {
      layer->weight_bf16 = copies.at(layer->weight.unsafeGetTensorImpl());
      layer->bias_bf16 = copies.at(layer->bias.unsafeGetTensorImpl());
    }
  }
}

// FFNs that stand for static experts: where these start, and the eps that stands for theirs.
void collapse_static(const RunConfig& config, const std::vector<NamedFfn>& ffns,
                     std::vector<ParameterSlot>& slots) {
  for (const NamedFfn& ffn : ffns) {
    start_at_mean(*config.fusion, ffn.ffn->parameters_in_order(), config.seed, ffn.index);
    for (ParameterSlot& slot : slots) {
      if (slot.name.starts_with(ffn.name + ".")) slot.eps_scale = static_cast<double>(config.fusion->experts);
    }
  }
}

// The losses that the FFNs add (a mixture's balance, say), each a mean over the micro-batch.
at::Tensor auxiliary_losses(const TrainingState& state) {
  at::Tensor sum;
  for (const auto& ffn : state.feed_forwards) {
    const at::Tensor loss = ffn->auxiliary_loss();
    if (loss.defined()) sum = sum.defined() ? sum + loss : loss;
  }
  return sum;
}

// The loss of one micro-batch, of which the gradients are wanted: the sum of its cross entropies over the
// global batch size, and the share of the FFNs' losses.
struct MicroBatchLoss {
  at::Tensor cross_entropy, objective;
};

MicroBatchLoss forward(const RunConfig& config, TrainingState& state, const Batch& batch, std::int64_t first,
                       std::int64_t count) {
  const std::span<const std::int64_t> samples(batch.samples.data() + first, static_cast<std::size_t>(count));
  const c10::Device device = batch.images.device();
  at::Tensor drop_path = drop_path_factors(state.model->drop_path_rates(), config.seed, batch.epoch, samples);
  if (drop_path.defined()) drop_path = drop_path.to(device);
  for (const auto& ffn : state.feed_forwards)
    ffn->begin_pass({config.seed, state.step, first / config.train.micro_batch});
  at::Tensor loss;
  {
    PrecisionScope precision(config.train.precision, device.type());
    const at::Tensor logits = state.model->forward(batch.images.narrow(0, first, count), drop_path);
    loss = at::cross_entropy_loss(logits.to(at::kFloat), batch.targets.narrow(0, first, count), {},
                                  at::Reduction::Sum) /
           static_cast<double>(batch.images.size(0));
  }
  const at::Tensor auxiliary = auxiliary_losses(state);
  if (!auxiliary.defined()) return {loss, loss};
  const double share = static_cast<double>(count) / static_cast<double>(batch.images.size(0));
  return {loss, loss + auxiliary.to(at::kFloat) * share};
}

// Adds the gradients and the loss of one micro-batch.
void accumulate(const RunConfig& config, TrainingState& state, const Batch& batch, std::int64_t first,
                std::int64_t count, StepResult& result) {
  MicroBatchLoss loss;
  {
    const PhaseScope phase(Phase::forward, result.phases);
    loss = forward(config, state, batch, first, count);
  }
  const PhaseScope phase(Phase::backward, result.phases);
  loss.objective.backward();
  result.loss += loss.cross_entropy.item<double>();
  loss = {};  // frees the graph
}

// The end of a step whose gradients and loss are complete: skips it or updates everything.
void update_or_skip(const RunConfig& config, TrainingState& state, std::int64_t step, std::int64_t total,
                    std::int64_t steps_per_epoch, StepResult& result) {
  const PhaseScope phase(Phase::update, result.phases);
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
  if (config.fusion) {
    const FusionConfig& fusion = *config.fusion;
    const double weights_lr =
        fusion.lr.value_or(optim.lr) *
        schedule_factor(fusion.schedule.value_or(optim.schedule), step, total, steps_per_epoch);
    for (ExpertBank& bank : state.banks) bank.update(optim, result.lr, weights_lr, state.updates, scale);
  }
  const double progress = std::min(1.0, static_cast<double>(state.step) / static_cast<double>(total));
  for (const auto& ffn : state.feed_forwards) ffn->after_update(progress);
  if (state.ema) state.ema->update();
}

}  // namespace

TrainingState make_training_state(const RunConfig& config, bool load_source) {
  TrainingState state;
  state.model = make_model(config.model, config.seed);
  state.model->set_recompute(config.train.recompute);
  scale_initial_values(config.control, *state.model);
  if (load_source) load_start_weights(config, *state.model);
  if (const c10::Device device = training_device(config.train.device); !device.is_cpu())
    state.model->to(device);
  std::vector<NamedFfn> fused, collapsed;
  if (config.fusion)
    (config.fusion->materialize ? fused : collapsed) = select_ffns(*state.model, config.fusion->layers);
  std::vector<ParameterSlot> slots = order_parameters(*state.model, fused);
  collapse_static(config, collapsed, slots);
  scale_learning_rates(config.control, *state.model, load_source, slots);
  state.parameters = std::make_unique<FlatParameters>(std::move(slots));
  if (config.train.precision == "bf16" && state.parameters->values().is_cpu())
    keep_bf16_copies(*state.parameters, *state.model);
  const std::size_t dense = state.parameters->slots().size() - fused.size() * kFfnTensors.size();
  state.dense = std::make_unique<DenseAdamW>(*state.parameters, 0, dense);
  for (std::size_t i = 0; i < fused.size(); ++i) {
    ExpertBank& bank =
        state.banks.emplace_back(*config.fusion, *state.parameters, dense + i * kFfnTensors.size(),
                                 fused[i].name, fused[i].index, config.seed);
    if (bank.needs_input()) fused[i].ffn->watch_input([&bank](const at::Tensor& x) { bank.see_input(x); });
  }
  if (load_source) load_stored_experts(config, state.banks);
  state.feed_forwards = find_feed_forwards(*state.model);
  if (config.train.ema > 0.0) state.ema = std::make_unique<WeightEma>(*state.parameters, config.train.ema);
  return state;
}

StepResult train_step(const RunConfig& config, TrainingState& state, const Batch& given, std::int64_t total,
                      std::int64_t steps_per_epoch) {
  const Batch batch = to_device(given, state.parameters->values().device());
  StepResult result;
  const AdamWConfig& optim = config.optim;
  result.lr = optim.lr * schedule_factor(optim.schedule, state.step, total, steps_per_epoch);

  const std::int64_t samples = batch.images.size(0);
  {
    const PhaseScope phase(Phase::update, result.phases);
    state.parameters->zero_gradients();
    for (ExpertBank& bank : state.banks) bank.begin_step(state.step, samples);
  }
  for (std::int64_t first = 0; first < samples; first += config.train.micro_batch)
    accumulate(config, state, batch, first, std::min(config.train.micro_batch, samples - first), result);

  {
    const PhaseScope phase(Phase::clip, result.phases);
    const at::Tensor gradients = state.parameters->gradients();
    result.grad_norm = std::sqrt(
        sum_of_squares_on(gradients.device(), gradients.const_data_ptr<float>(), gradients.numel()));
  }
  update_or_skip(config, state, batch.step, total, steps_per_epoch, result);
  return result;
}

}  // namespace exfusion
