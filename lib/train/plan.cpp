#include "train/plan.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "data/loader.h"
#include "train/cost.h"
#include "train/step.h"

namespace exfusion {

std::string plan_text(const RunConfig& config) {
  const Datasets data = make_datasets(config.data, config.seed, config.model.image_shape());
  const TrainingState state = make_training_state(config);
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
  const std::string control =
      config.control.name == "none" ? "" : fmt::format(" (control {})", config.control.name);
  row("fusion", (config.fusion ? fmt::format("{} FFNs with {} experts each, weights {}", state.banks.size(),
                                             config.fusion->experts, config.fusion->weights)
                               : "none: dense training") +
                    control);
  row("data",
      fmt::format("{}: {} training, {} held out, {} test images", config.data.name, data.train->size(),
                  data.validation ? data.validation->size() : 0, data.test->size()));
  row("training",
      fmt::format("{} steps of {} images ({} per epoch, micro-batches of {}), {}", steps,
                  config.train.global_batch, per_epoch, config.train.micro_batch, config.train.precision));
  row("cost", cost_text(cost));
  return text;
}

}  // namespace exfusion
