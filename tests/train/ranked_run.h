// One of several ranks of a run that is small enough for a test.
#pragma once
#include <string>
#include <vector>

#include "core/recipe.h"
#include "data/loader.h"
#include "train/passes.h"
#include "train/step.h"

namespace exfusion {

inline constexpr const char* kRankedRecipe = R"(name: ranks
model: {arch: vit, dim: 48, depth: 3, heads: 2, patch: 4, image: 8, channels: 1, classes: 4, drop_path: 0.2}
data: {name: synthetic, train_samples: 96, test_samples: 37, augment: {mixup: 0.3}}
train: {steps: 6, global_batch: 24}
optim: {lr: 0.01, schedule: {name: constant}}
)";

// A state on one of the ranks, and how it is stepped.
struct RankedRun {
  RankedRun(const std::vector<std::string>& sets, const ProcessGroup& group) {
    Recipe recipe = Recipe::parse(kRankedRecipe, "ranks.yaml", sets);
    config = parse_run(recipe);
    resolved = recipe.resolved();
    data = make_datasets(config.data, config.seed, config.model.image_shape());
    per_epoch = steps_per_epoch(*data.train, config.train.global_batch);
    state = make_training_state(config, true, group);
  }
  StepResult step() {
    const auto [first, last] = rows_of_rank(config, state.group.rank(), state.group.world());
    const LoaderConfig loader{.data = config.data,
                              .seed = config.seed,
                              .global_batch = config.train.global_batch,
                              .classes = config.model.vit.classes,
                              .first = first,
                              .count = last - first};
    return train_step(config, state, make_batch(*data.train, loader, state.step), 6, per_epoch);
  }
  RunConfig config;
  std::string resolved;
  Datasets data;
  std::int64_t per_epoch = 0;
  TrainingState state;
};

}  // namespace exfusion
