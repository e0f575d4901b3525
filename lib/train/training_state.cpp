#include "train/training_state.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <unordered_map>
#include <utility>

#include "core/allocation.h"
#include "fusion/collapsed_static.h"
#include "nn/ffn.h"
#include "nn/layers.h"
#include "optim/reduction.h"
#include "train/device.h"
#include "train/start_weights.h"

namespace exfusion {
namespace {

// In the order decayed, not decayed; then the four tensors of each dense FFN, those of fused ones last. So
// dense and fused training lay out, and exchange, the same buffer.
std::vector<ParameterSlot> order_parameters(const Model& model, const std::vector<NamedFfn>& fused) {
  const std::vector<NamedFfn> ffns = find_ffns(model);
  const auto among = [](const std::vector<NamedFfn>& list, const std::string& name) {
    return std::ranges::any_of(list, [&](const NamedFfn& ffn) { return name.starts_with(ffn.name + "."); });
  };
  std::array<std::vector<ParameterSlot>, 4> kinds;
  for (const auto& item : model.named_parameters()) {
    ParameterSlot slot{.name = item.key(), .parameter = item.value(), .decay = model.decays(item.key())};
    kinds[among(fused, slot.name)  ? 3
          : among(ffns, slot.name) ? 2
          : slot.decay             ? 0
                                   : 1]
        .push_back(std::move(slot));
  }
  std::vector<ParameterSlot> all;
  for (auto& kind : kinds) std::ranges::move(kind, std::back_inserter(all));
  return all;
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

constexpr std::int64_t kUnit = 1 << 20;  // elements of an exchange unit, unless one tensor or FFN has more

// Units of neighbours in the flat buffers, no FFN cut in two. Their parts begin where blocks of the sums over
// parameters do (optim/reduction.h), so that no number of ranks changes these sums. The first `dense` slots
// are in no bank; FFNs' tensors are the last `ffn_tensors`.
std::vector<ExchangeUnit> exchange_units(const DistConfig& config, const FlatParameters& parameters,
                                         std::size_t dense, std::size_t ffn_tensors, int world) {
  const std::vector<ParameterSlot>& slots = parameters.slots();
  const std::size_t first_ffn = slots.size() - ffn_tensors;
  std::vector<ExchangeUnit> units;
  std::vector<std::int64_t> boundaries;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const bool inside_ffn = i >= first_ffn && (i - first_ffn) % kFfnTensors.size() != 0;
    const bool sharded = i < dense ? config.shard == "all" : config.shard != "none";
    const std::int64_t next = i + 1 < slots.size() ? slots[i + 1].offset : parameters.values().numel();
    // An element of an FFN with experts weighs more than a dense one: parts of both would not be even in
    // bytes.
    const bool first_of_bank = sharded && i == dense;
    const bool fits = !units.empty() && !first_of_bank && sharded == units.back().sharded &&
                      next - units.back().begin <= kUnit;
    if (!inside_ffn && !fits) units.push_back({.begin = slots[i].offset, .sharded = sharded});
    units.back().end = next;
    for (std::int64_t block = 0; block < slots[i].size; block += kReductionBlock)
      boundaries.push_back(slots[i].offset + block);
  }
  for (ExchangeUnit& unit : units) {
    const auto first = std::ranges::lower_bound(boundaries, unit.begin),
               last = std::ranges::lower_bound(boundaries, unit.end);
    unit.cuts = cut_evenly(unit.begin, unit.end, {first, last}, world);
  }
  return units;
}

std::unique_ptr<GradientExchange> make_exchange(const DistConfig& config, const TrainingState& state,
                                                std::size_t dense) {
  std::unordered_map<std::string, const ParameterSlot*> slots;
  for (const ParameterSlot& slot : state.parameters->slots()) slots[slot.name] = &slot;
  std::vector<ExchangedParameter> parameters;
  for (const auto& item : state.model->named_parameters()) {
    const ParameterSlot& slot = *slots.at(item.key());
    if (slot.parameter.requires_grad()) parameters.push_back({slot.name, slot.parameter, slot.offset});
  }
  return std::make_unique<GradientExchange>(
      state.group, state.parameters->gradients(),
      exchange_units(config, *state.parameters, dense, find_ffns(*state.model).size() * kFfnTensors.size(),
                     state.group.world()),
      std::move(parameters));
}

// Of the first `dense` slots.
std::vector<DenseAdamW::Range> owned_ranges(const TrainingState& state, std::size_t dense) {
  std::vector<DenseAdamW::Range> ranges;
  for (std::size_t i = 0; i < dense; ++i) {
    const ParameterSlot& slot = state.parameters->slots()[i];
    const auto [begin, end] = state.exchange->owned(slot.offset, slot.offset + slot.size);
    ranges.emplace_back(begin - slot.offset, end - slot.offset);
  }
  return ranges;
}

}  // namespace

TrainingState make_training_state(const RunConfig& config, bool load_source, ProcessGroup group) {
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
  state.group = std::move(group);
  state.exchange = make_exchange(config.dist, state, dense);
  state.dense = std::make_unique<DenseAdamW>(*state.parameters, 0, dense, owned_ranges(state, dense));
  for (std::size_t i = 0; i < fused.size(); ++i) {
    ExpertBank& bank = state.banks.emplace_back(
        *config.fusion, *state.parameters, dense + i * kFfnTensors.size(), fused[i].name, fused[i].index,
        config.seed, state.exchange.get(), config.dist.deterministic());
    if (bank.needs_input()) fused[i].ffn->watch_input([&bank](const at::Tensor& x) { bank.see_input(x); });
  }
  if (load_source) load_stored_experts(config, state.banks);
  state.feed_forwards = find_feed_forwards(*state.model);
  if (config.train.ema > 0.0) state.ema = std::make_unique<WeightEma>(*state.parameters, config.train.ema);
  give_back_freed_memory();  // the model's own parameters, drawn experts
  return state;
}

}  // namespace exfusion
