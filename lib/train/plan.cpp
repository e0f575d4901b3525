#include "train/plan.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>

#include "data/loader.h"
#include "train/cost.h"
#include "train/memory.h"
#include "train/passes.h"
#include "train/ranks.h"
#include "train/step.h"

namespace exfusion {
namespace {

// Two real steps of the state, the second of them timed; whoever asks throws the state away.
std::string trial_text(const RunConfig& config, TrainingState& state, const Dataset& train,
                       std::int64_t total, std::int64_t per_epoch) {
  const Batch batch =
      make_batch(train, {config.data, config.seed, config.train.global_batch, config.model.vit.classes}, 0);
  train_step(config, state, batch, total, per_epoch);
  const auto start = std::chrono::steady_clock::now();
  train_step(config, state, batch, total, per_epoch);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  return fmt::format(
      "{:.0f} images/s, {:.0f} MB peak memory of the process, from two trial steps on {} threads",
      static_cast<double>(config.train.global_batch) / seconds.count(), peak_memory() / 1e6,
      at::get_num_threads());
}

// What each rank computes with and on.
std::string ranks_text(const RunConfig& config, const Launch& launch, const RankThreads& threads) {
  const auto images = [&](int rank) {
    const auto [first, last] = rows_of_rank(config, rank, launch.world);
    return last - first;
  };
  const std::int64_t most = images(0), least = images(launch.world - 1);
  return fmt::format(
      "{}, {} of them on this machine; each with {} threads ({}) and {} of a step's {} images; "
      "dist.shard: {}",
      launch.world, launch.local_world, threads.count, threads.reason,
      most == least ? std::to_string(most)
                    : fmt::format("{} to {}", std::min(least, most), std::max(least, most)),
      config.train.global_batch, config.dist.shard);
}

}  // namespace

std::string experts_text(const RunConfig& config, const TrainingState& state) {
  const FfnConfig& ffn = config.model.vit.ffn;
  std::string text = "none: dense";
  if (config.fusion && !config.fusion->materialize) {
    text = fmt::format("{} static ones per FFN of layers {}, trained as the one FFN that they amount to",
                       config.fusion->experts, fmt::join(config.fusion->layers, ", "));
  } else if (config.fusion) {
    text = fmt::format("{} of {} FFNs with {} experts each, weights {}", state.banks.size(),
                       config.model.vit.depth, config.fusion->experts, config.fusion->weights);
  } else if (ffn.name != "dense") {
    text = fmt::format("inside the model: {} with {} experts", ffn.name, ffn.experts);
  }
  return config.control.name == "none" ? text : fmt::format("{} (control {})", text, config.control.name);
}

std::string plan_text(const RunConfig& config, const Launch& launch) {
  const std::int64_t asked = asked_threads(config);
  const RankThreads threads =
      launch.world > 1 ? threads_of_rank(asked, launch) : RankThreads{static_cast<int>(asked), ""};
  if (threads.count > 0) at::set_num_threads(threads.count);
  const std::string ranks = launch.world > 1 ? ranks_text(config, launch, threads)
                                             : fmt::format("1, with {} threads", at::get_num_threads());
  // Before anything of it is taken.
  const std::string memory = memory_text(config, launch.world, launch.local_world);
  const Datasets data = make_datasets(config.data, config.seed, config.model.image_shape());
  TrainingState state = make_training_state(config);
  const std::int64_t per_epoch = steps_per_epoch(*data.train, config.train.global_batch);
  const std::int64_t steps = total_steps(config.train, per_epoch);

  const TrainingCost cost = training_cost(config, state);
  std::string text = fmt::format("{:<14}{}\n", "run", config.name);
  const auto row = [&](const char* name, const std::string& value) {
    text += fmt::format("{:<14}{}\n", name, value);
  };
  row("model",
      fmt::format("{}: {:.2f} M parameters deployed, {:.2f} GFLOP per image forward", config.model.arch,
                  cost.parameters_deployed / 1e6, state.model->forward_flops() / 1e9));
  row("experts", experts_text(config, state));
  row("data",
      fmt::format("{}: {} training, {} held out, {} test images", config.data.name, data.train->size(),
                  data.validation ? data.validation->size() : 0, data.test->size()));
  row("training",
      fmt::format("{} steps of {} images ({} per epoch, micro-batches of {}), {}", steps,
                  config.train.global_batch, per_epoch, config.train.micro_batch, config.train.precision));
  row("cost", cost_text(cost));
  row("ranks", ranks);
  row("memory", memory);
  row("measured", trial_text(config, state, *data.train, steps, per_epoch) +
                      (launch.world > 1 ? ", of one rank that does the work of all" : ""));
  return text;
}

}  // namespace exfusion
