#include "train/passes.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <csignal>
#include <span>

#include "core/error.h"
#include "fusion/bank_updates.h"
#include "nn/drop_path.h"
#include "train/precision.h"

namespace exfusion {
namespace {

// The losses that the FFNs add (a mixture's balance, say), each a mean over the micro-batch.
at::Tensor auxiliary_losses(const TrainingState& state) {
  at::Tensor sum;
  for (const auto& ffn : state.feed_forwards) {
    const at::Tensor loss = ffn->auxiliary_loss();
    if (loss.defined()) sum = sum.defined() ? sum + loss : loss;
  }
  return sum;
}

// Samples [first, first + count) of a batch; the pass's number on this rank; what its loss is divided by.
struct Pass {
  std::int64_t first = 0, count = 0, number = 0;
  double divisor = 1.0;
};

// The loss of one pass, of which the gradients are wanted: the sum of its cross entropies over the divisor,
// and the share of the FFNs' losses.
struct PassLoss {
  at::Tensor cross_entropy, objective;
};

PassLoss forward(const RunConfig& config, TrainingState& state, const Batch& batch, const Pass& pass,
                 const std::function<void(std::vector<double>&)>& sum_over_ranks) {
  const std::span<const std::int64_t> samples(batch.samples.data() + pass.first,
                                              static_cast<std::size_t>(pass.count));
  const c10::Device device = batch.images.device();
  at::Tensor drop_path = drop_path_factors(state.model->drop_path_rates(), config.seed, batch.epoch, samples);
  if (drop_path.defined()) drop_path = drop_path.to(device);
  for (const auto& ffn : state.feed_forwards)
    ffn->begin_pass(
        {config.seed, state.step, pass.number, batch.first + pass.first, batch.all, sum_over_ranks});
  at::Tensor loss;
  {
    PrecisionScope precision(config.train.precision, device.type());
    const at::Tensor logits = state.model->forward(batch.images.narrow(0, pass.first, pass.count), drop_path);
    loss = at::cross_entropy_loss(logits.to(at::kFloat), batch.targets.narrow(0, pass.first, pass.count), {},
                                  at::Reduction::Sum) /
           pass.divisor;
  }
  const at::Tensor auxiliary = auxiliary_losses(state);
  if (!auxiliary.defined()) return {loss, loss};
  return {loss, loss + auxiliary.to(at::kFloat) * (static_cast<double>(pass.count) / pass.divisor)};
}

// Adds the gradients of one pass; returns its loss.
double run_pass(const RunConfig& config, TrainingState& state, const Batch& batch, const Pass& pass,
                const std::function<void(std::vector<double>&)>& sum_over_ranks, PhaseSeconds& phases) {
  PassLoss loss;
  {
    const PhaseScope phase(Phase::forward, phases, &state.group);
    loss = forward(config, state, batch, pass, sum_over_ranks);
  }
  const PhaseScope phase(Phase::backward, phases, &state.group);
  loss.objective.backward();
  return loss.cross_entropy.item<double>();
}

// How many micro-batches every rank makes of its rows: the same number on all, since an FFN may sum over the
// ranks in a pass, and none without samples.
std::int64_t micro_batches(const RunConfig& config, std::int64_t global_batch, int world) {
  const std::int64_t most = (global_batch + world - 1) / world, least = global_batch / world;
  return std::min(least, (most + config.train.micro_batch - 1) / config.train.micro_batch);
}

void run_micro_batches(const RunConfig& config, TrainingState& state, const Batch& batch,
                       StepResult& result) {
  const std::int64_t samples = batch.images.size(0),
                     count = micro_batches(config, batch.all, state.group.world());
  std::function<void(std::vector<double>&)> sum_over_ranks;
  if (!state.group.alone()) sum_over_ranks = [&](std::vector<double>& values) { state.group.sum(values); };
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t first = samples * i / count, last = samples * (i + 1) / count;
    if (i + 1 == count) state.exchange->begin_last_pass();
    result.loss += run_pass(config, state, batch, {first, last - first, i, static_cast<double>(batch.all)},
                            sum_over_ranks, result.phases);
  }
  const PhaseScope phase(Phase::reduce, result.phases);
  state.exchange->finish();
  sum_routing(state.banks, state.group);
}

// Every leaf by itself, in tensors of its own: the same shapes, and the same place in a cache line, on any
// rank.
void run_leaves(const RunConfig& config, TrainingState& state, const Batch& batch, StepResult& result) {
  const std::int64_t size = config.dist.leaf_batch, leaves = batch.all / size;
  TreeSum gradients(leaves), losses(leaves);
  RoutingLeaves routing(leaves);
  for (std::int64_t i = 0; i * size < batch.images.size(0); ++i) {
    const LeafNode leaf{0, batch.first / size + i};
    Batch alone = batch;
    alone.images = batch.images.narrow(0, i * size, size).clone();
    alone.targets = batch.targets.narrow(0, i * size, size).clone();
    alone.samples.assign(batch.samples.begin() + i * size, batch.samples.begin() + (i + 1) * size);
    alone.first = batch.first + i * size;
    const double loss = run_pass(config, state, alone, {0, size, i, 1.0}, {}, result.phases);
    losses.push(leaf, at::full({1}, loss, at::kDouble));
    gradients.push(leaf, state.parameters->gradients().clone());
    routing.take(leaf, state.banks);
    state.parameters->zero_gradients();
  }
  const PhaseScope phase(Phase::reduce, result.phases);
  const double scale = 1.0 / static_cast<double>(batch.all);
  state.exchange->finish(gradients, leaves, static_cast<float>(scale));
  result.loss = total_over_ranks(losses, leaves, state.group).item<double>() * scale;
  routing.finish(state.banks, state.group);
}

// One sum of a few numbers: the loss (of micro-batches), who has received which signal, what the FFNs have
// counted.
void sum_numbers(TrainingState& state, bool with_loss, int signal, StepResult& result) {
  std::vector<double> numbers = {with_loss ? result.loss : 0.0, signal == SIGINT ? 1.0 : 0.0,
                                 signal == SIGTERM ? 1.0 : 0.0};
  for (const auto& ffn : state.feed_forwards) {
    for (const std::int64_t count : ffn->step_counts()) numbers.push_back(static_cast<double>(count));
  }
  state.group.sum(numbers);
  if (with_loss) result.loss = numbers[0];
  result.signal = numbers[2] > 0.0 ? SIGTERM : numbers[1] > 0.0 ? SIGINT : 0;
  auto next = numbers.begin() + 3;
  for (const auto& ffn : state.feed_forwards) {
    for (std::int64_t& count : ffn->step_counts()) count = static_cast<std::int64_t>(*next++);
  }
}

}  // namespace

std::pair<std::int64_t, std::int64_t> rows_of_rank(const RunConfig& config, int rank, int world) {
  const std::int64_t leaf = config.dist.deterministic() ? config.dist.leaf_batch : 1;
  if (config.train.global_batch / leaf < world)
    throw RecipeError(
        fmt::format("{} ranks cannot share the {} {} of train.global_batch: every rank needs one", world,
                    config.train.global_batch / leaf,
                    config.dist.deterministic() ? "leaves (dist.leaf_batch)" : "samples"));
  const auto [first, last] = leaves_of_rank(config.train.global_batch / leaf, rank, world);
  return {first * leaf, last * leaf};
}

void run_passes(const RunConfig& config, TrainingState& state, const Batch& batch, int signal,
                StepResult& result) {
  const bool deterministic = config.dist.deterministic();
  (deterministic ? run_leaves : run_micro_batches)(config, state, batch, result);
  const PhaseScope phase(Phase::reduce, result.phases);
  sum_numbers(state, !deterministic, signal, result);
}

}  // namespace exfusion
