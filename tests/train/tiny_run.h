// A run small enough for a test: a ViT of two blocks on synthetic images, from a recipe as users write it.
#pragma once
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/recipe.h"
#include "support/test_folder.h"
#include "train/step.h"

namespace exfusion {

inline constexpr const char* kTinyRecipe = R"(name: tiny
model: {arch: vit, dim: 16, depth: 2, heads: 2, patch: 4, image: 8, channels: 1, classes: 4}
data: {name: synthetic, train_samples: 96, test_samples: 37}
train: {steps: 6, global_batch: 32, micro_batch: 16}
optim: {lr: 0.01, schedule: {name: constant}}
)";

// Adds experts to the recipe.
inline const std::vector<std::string> kLearned = {"fusion={experts: 3, weights: learned}"};

struct TinyRun {
  explicit TinyRun(const std::vector<std::string>& sets = {}) {
    at::set_num_threads(1);  // on tensors this small, threads only wait for each other
    Recipe recipe = Recipe::parse(kTinyRecipe, "tiny.yaml", sets);
    config = parse_run(recipe);
    resolved = recipe.resolved();
    data = make_datasets(config.data, config.seed, config.model.image_shape());
    per_epoch = steps_per_epoch(*data.train, config.train.global_batch);
    state = make_training_state(config);
  }
  Batch batch(std::int64_t step) const {
    return make_batch(*data.train,
                      {config.data, config.seed, config.train.global_batch, config.model.vit.classes}, step);
  }
  StepResult step(const Batch& batch) {
    return train_step(config, state, batch, total_steps(config.train, per_epoch), per_epoch);
  }
  void steps(std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) step(batch(state.step));
  }
  at::Tensor parameter(const std::string& name) const {
    return state.model->named_parameters()[name].detach();
  }

  RunConfig config;
  std::string resolved;
  Datasets data;
  std::int64_t per_epoch = 0;
  TrainingState state;
};

// Copies of every tensor that training changes.
inline std::map<std::string, at::Tensor> snapshot(const TrainingState& state) {
  std::map<std::string, at::Tensor> copies = {{"values", state.parameters->values().clone()}};
  const auto add = [&](const std::string& kind, const NamedTensors& tensors) {
    for (const auto& [name, tensor] : tensors) copies[kind + name] = tensor.clone();
  };
  add("dense/", state.dense->state());
  for (const ExpertBank& bank : state.banks) {
    add("experts/", bank.expert_state());
    add("experts' optimizer/", bank.optimizer_state());
  }
  if (state.ema) add("average/", state.ema->state());
  return copies;
}

inline void expect_equal_bits(const std::map<std::string, at::Tensor>& found,
                              const std::map<std::string, at::Tensor>& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (const auto& [name, tensor] : expected) {
    ASSERT_TRUE(found.contains(name)) << name;
    EXPECT_TRUE(at::equal(found.at(name), tensor)) << name;
  }
}

inline double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

// Runs `action`, which must throw an E whose message is one line with all the fragments.
template <class E>
void expect_error(const std::function<void()>& action, const std::vector<std::string>& fragments) {
  try {
    action();
    ADD_FAILURE() << "nothing was thrown";
  } catch (const E& error) {
    const std::string message = error.what();
    for (const std::string& fragment : fragments) {
      EXPECT_NE(message.find(fragment), std::string::npos) << "'" << fragment << "' is not in: " << message;
    }
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  }
}

}  // namespace exfusion
