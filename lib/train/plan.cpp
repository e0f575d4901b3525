#include "train/plan.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "data/loader.h"
#include "train/step.h"

namespace exfusion {

std::string plan_text(const RunConfig& config) {
  const Datasets data = make_datasets(config.data, config.seed, config.model.image_shape());
  const TrainingState state = make_training_state(config);
  const std::int64_t per_epoch = steps_per_epoch(*data.train, config.train.global_batch);
  const std::int64_t steps = total_steps(config.train, per_epoch);

  const double parameters = static_cast<double>(state.parameters->values().numel());
  double expert_values = 0.0, fused_values = 0.0;
  for (const ExpertBank& bank : state.banks) {
    for (const auto& [name, tensor] : bank.expert_state()) {
      if (name.ends_with(".a")) continue;
      expert_values += static_cast<double>(tensor.numel());
      fused_values += static_cast<double>(tensor.numel()) / static_cast<double>(bank.experts());
    }
  }
  // fp32: value and gradient of every dense parameter, two moments of those outside the banks, three values
  // per expert's parameter
  const double bytes = 4.0 * (2.0 * parameters + 2.0 * (parameters - fused_values) + 3.0 * expert_values);

  std::string text = fmt::format("{:<14}{}\n", "run", config.name);
  const auto row = [&](const char* name, const std::string& value) {
    text += fmt::format("{:<14}{}\n", name, value);
  };
  row("model", fmt::format("{}: {:.2f} M parameters, {:.2f} GFLOP per image forward", config.model.arch,
                           parameters / 1e6, state.model->forward_flops() / 1e9));
  row("fusion", config.fusion
                    ? fmt::format("{} FFNs with {} experts each, weights {}, {:.2f} M expert parameters",
                                  state.banks.size(), config.fusion->experts, config.fusion->weights,
                                  expert_values / 1e6)
                    : "none: dense training");
  row("data",
      fmt::format("{}: {} training, {} held out, {} test images", config.data.name, data.train->size(),
                  data.validation ? data.validation->size() : 0, data.test->size()));
  row("training",
      fmt::format("{} steps of {} images ({} per epoch, micro-batches of {}), {}", steps,
                  config.train.global_batch, per_epoch, config.train.micro_batch, config.train.precision));
  row("memory",
      fmt::format("{:.1f} MB of weights, gradients and moments; activations come on top", bytes / 1e6));
  return text;
}

}  // namespace exfusion
