#include "optim/adamw.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <random>
#include <vector>

#include "core/error.h"
#include "core/recipe.h"

namespace exfusion {
namespace {

AdamWConfig config_with(double lr, double weight_decay, double eps) {
  AdamWConfig config;
  config.lr = lr;
  config.weight_decay = weight_decay;
  config.eps = eps;
  return config;
}

at::Tensor numbers(std::int64_t n, std::uint64_t seed, at::ScalarType type = at::kFloat) {
  std::mt19937_64 bits(seed);
  std::normal_distribution<double> normal;
  at::Tensor x = at::empty({n}, at::kDouble);
  for (std::int64_t i = 0; i < n; ++i) x.mutable_data_ptr<double>()[i] = normal(bits);
  return x.to(type);
}

struct Trained {
  at::Tensor w, m, v;
};

// `steps` updates with a fresh gradient each.
template <class T>
Trained run(std::int64_t n, const AdamWConfig& config, int steps, T scale) {
  const at::ScalarType type = c10::CppTypeToScalarType<T>::value;
  Trained state{numbers(n, 1, type), at::zeros({n}, type), at::zeros({n}, type)};
  for (int t = 1; t <= steps; ++t) {
    const at::Tensor g = numbers(n, 100 + static_cast<std::uint64_t>(t), type);
    adamw_update<T>(n, state.w.mutable_data_ptr<T>(), state.m.mutable_data_ptr<T>(),
                    state.v.mutable_data_ptr<T>(), g.template const_data_ptr<T>(), scale,
                    adamw_scalars<T>(config, config.lr, config.weight_decay, t));
  }
  return state;
}

template <class T>
void expect_as_pytorch(double tolerance) {
  const std::int64_t n = 1'003;
  const AdamWConfig config = config_with(1e-2, 0.1, 1e-8);
  const Trained ours = run<T>(n, config, 100, T(0.5));
  const at::ScalarType type = c10::CppTypeToScalarType<T>::value;
  at::Tensor w = numbers(n, 1, type), m = at::zeros({n}, type), v = at::zeros({n}, type),
             step = at::zeros({});
  for (std::uint64_t t = 1; t <= 100; ++t) {
    step.add_(1);  // the operator leaves counting to its caller
    at::_fused_adamw_({w}, {numbers(n, 100 + t, type) * 0.5}, {m}, {v}, {}, {step}, config.lr, config.beta1,
                      config.beta2, config.weight_decay, config.eps, /*amsgrad=*/false, /*maximize=*/false);
  }
  EXPECT_LT((ours.w - w).abs().max().item<double>(), tolerance);
  EXPECT_LT((ours.m - m).abs().max().item<double>(), tolerance);
  EXPECT_LT((ours.v - v).abs().max().item<double>(), tolerance);
  EXPECT_GT((ours.w - numbers(n, 1, type)).abs().mean().item<double>(), 1e-2);  // it did move
}

TEST(AdamW, FollowsPyTorchForAHundredSteps) {
  expect_as_pytorch<float>(2e-6);
  expect_as_pytorch<double>(1e-13);
}

// A constant gradient and eps = 0 give m/(1-beta1^t) = g and v/(1-beta2^t) = g^2: every step is keep w - lr
// sign(g).
TEST(AdamW, TakesSignStepsUnderAConstantGradient) {
  const AdamWConfig config = config_with(1e-2, 0.5, 0.0);
  const std::vector<double> g = {3.0, -1e-9, 1e9, -0.25, 1e-30};
  std::vector<double> w = {1.0, -2.0, 0.5, 0.0, 3.0}, m(5), v(5);
  const std::vector<double> start = w;
  const int steps = 500;
  for (int t = 1; t <= steps; ++t) {
    adamw_update(5, w.data(), m.data(), v.data(), g.data(), 1.0,
                 adamw_scalars<double>(config, config.lr, config.weight_decay, t));
  }
  const double kept = std::pow(1.0 - 0.005, steps);
  for (std::size_t i = 0; i < 5; ++i) {
    const double sign = g[i] > 0 ? 1.0 : -1.0;
    EXPECT_NEAR(w[i], kept * start[i] - sign * 1e-2 * (1.0 - kept) / 0.005, 1e-11) << i;
  }
}

TEST(AdamW, HasTheBitsOfItsElementFunctionForAnyThreadsAndInstructionSet) {
  const std::int64_t n = 100'003;
  const AdamWConfig config = config_with(1e-3, 0.05, 1e-8);
  // The reference loop here is compiled for the baseline instruction set; the kernel is dispatched.
  Trained plain{numbers(n, 1), at::zeros({n}), at::zeros({n})};
  for (int t = 1; t <= 3; ++t) {
    const at::Tensor g = numbers(n, 100 + static_cast<std::uint64_t>(t));
    const auto scalars = adamw_scalars<float>(config, config.lr, config.weight_decay, t);
    for (std::int64_t i = 0; i < n; ++i) {
      adamw_element(plain.w.mutable_data_ptr<float>()[i], plain.m.mutable_data_ptr<float>()[i],
                    plain.v.mutable_data_ptr<float>()[i], 0.3f * g.const_data_ptr<float>()[i], scalars);
    }
  }
  const int threads = omp_get_max_threads();
  for (int count : {1, 2, 3}) {
    omp_set_num_threads(count);
    const Trained ours = run<float>(n, config, 3, 0.3f);
    EXPECT_TRUE(at::equal(ours.w, plain.w) && at::equal(ours.m, plain.m) && at::equal(ours.v, plain.v))
        << count;
  }
  omp_set_num_threads(threads);
}

// A slot's factor: learning rate times it, weight decay over it.
TEST(DenseAdamW, ScalesTheLearningRateOfASlot) {
  const AdamWConfig config = config_with(1e-2, 0.1, 1e-8);
  const auto trained = [](const AdamWConfig& how, double lr_scale, double lr) {
    std::vector<ParameterSlot> slots(1);
    slots[0] = {.name = "w", .parameter = numbers(100, 1, at::kFloat).requires_grad_(), .decay = true};
    slots[0].lr_scale = lr_scale;
    FlatParameters flat(slots);
    DenseAdamW optimizer(flat, 0, 1);
    for (int t = 1; t <= 3; ++t) {
      flat.gradients().narrow(0, 0, 100).copy_(numbers(100, 10 + static_cast<std::uint64_t>(t), at::kFloat));
      optimizer.step(how, lr, t, 1.0f);
    }
    return flat.values().clone();
  };
  AdamWConfig scaled = config;
  scaled.weight_decay = config.weight_decay / 2.5;
  EXPECT_TRUE(at::equal(trained(config, 2.5, 1e-2), trained(scaled, 1.0, 2.5e-2)));
  EXPECT_FALSE(at::equal(trained(config, 2.5, 1e-2), trained(config, 1.0, 1e-2)));
}

AdamWConfig parse(const std::string& text) {
  Recipe recipe = Recipe::parse(text, "test.yaml");
  const AdamWConfig config = AdamWConfig::parse(recipe.root());
  recipe.finish();
  return config;
}

TEST(AdamWRecipe, ReadsEveryKey) {
  const AdamWConfig config = parse(
      "{name: adamw, lr: 0.5, weight_decay: 0.25, betas: [0.8, 0.95], eps: 1.0e-6, schedule: {name: linear, "
      "final: 0.5}}");
  EXPECT_EQ(config.lr, 0.5);
  EXPECT_EQ(config.weight_decay, 0.25);
  EXPECT_EQ(config.beta1, 0.8);
  EXPECT_EQ(config.beta2, 0.95);
  EXPECT_EQ(config.eps, 1e-6);
  EXPECT_EQ(config.schedule.name, "linear");
  EXPECT_EQ(config.schedule.final, 0.5);
}

TEST(AdamWRecipe, RefusesWhatIsOutOfRange) {
  for (const char* text :
       {"{name: sgd}", "{lr: -1.0}", "{betas: [0.9, 1.0]}", "{betas: [0.9]}", "{betas: [-0.1, 0.9]}",
        "{eps: -1.0e-8}", "{schedule: {name: step}}", "{momentum: 0.9}"}) {
    EXPECT_THROW(parse(text), RecipeError) << text;
  }
}

}  // namespace
}  // namespace exfusion
