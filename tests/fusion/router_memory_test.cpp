// Memory weights against double-precision autograd through a = softmax(R x) averaged, x, experts and the
// older memory held constant.
#include "fusion/router_memory.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <memory>

#include "core/error.h"
#include "fusion/expert_bank.h"
#include "nn/ffn.h"
#include "numbers.h"

namespace exfusion {
namespace {

constexpr std::int64_t kWatchedDim = 6, kWatchedHidden = 10, kWatchedTokens = 5;

FusionConfig memory_config(const std::string& forward) {
  FusionConfig config;
  config.experts = 4;
  config.weights = "memory";
  config.forward = forward;
  config.momentum = 0.7;
  config.temperature = 0.5;
  config.router_std = 0.6;
  config.balance = 0.05;
  return config;
}

// An FFN with a bank that watches its input.
struct Watched {
  explicit Watched(const FusionConfig& config) : ffn(std::make_shared<Ffn>(kWatchedDim, kWatchedHidden)) {
    const at::NoGradGuard no_grad;
    std::vector<ParameterSlot> slots(4);
    const auto tensors = ffn->parameters_in_order();
    const FfnTensors values = initial_ffn(kWatchedDim, kWatchedHidden, 7, 1, 0);
    for (std::size_t t = 0; t < 4; ++t) tensors[t].copy_(values[t]);
    for (std::size_t t = 0; t < 4; ++t)
      slots[t] = {.name = kFfnTensors[t], .parameter = tensors[t], .decay = t % 2 == 0};
    flat = std::make_unique<FlatParameters>(slots);
    bank = std::make_unique<ExpertBank>(config, *flat, 0, "mlp", 1, 7);
    for (const at::Tensor& tensor : bank->expert_tensors()) tensor.mul_(20.0);  // so that prices differ
    bank->fuse();
    ffn->watch_input([this](const at::Tensor& x) { bank->see_input(x); });
  }
  // Gradients of the mean squared error over x [samples, tokens, dim], cut into micro-batches.
  void forward_backward(const at::Tensor& x, const at::Tensor& y, std::int64_t micro_batch, int step) {
    flat->zero_gradients();
    bank->begin_step(step, x.size(0));
    for (std::int64_t first = 0; first < x.size(0); first += micro_batch) {
      const std::int64_t count = std::min(micro_batch, x.size(0) - first);
      const at::Tensor out = ffn->forward(x.narrow(0, first, count));
      ((out - y.narrow(0, first, count)).pow(2).sum() / static_cast<double>(y.numel())).backward();
    }
  }
  at::Tensor state(const std::string& name) const {
    for (const auto& [key, tensor] : bank->expert_state()) {
      if (key == "mlp." + name) return tensor.clone();
    }
    throw std::out_of_range(name);
  }
  std::shared_ptr<Ffn> ffn;
  std::unique_ptr<FlatParameters> flat;
  std::unique_ptr<ExpertBank> bank;
};

at::Tensor routing(const at::Tensor& x, const at::Tensor& router, double temperature) {
  return at::softmax(at::matmul(x.reshape({-1, kWatchedDim}), router.t()) / temperature, 1).mean(0);
}

// What the router's gradient depends on.
struct Past {
  at::Tensor x, router, memory;  // memory: m before r(x) was added
};

at::Tensor expected_gradient(const FusionConfig& config, const Past& past, const FfnTensors& experts,
                             const at::Tensor& x, const at::Tensor& y) {
  const at::Tensor router = past.router.to(at::kDouble).clone().requires_grad_();
  const at::Tensor r = routing(past.x.to(at::kDouble), router, config.temperature);
  const at::Tensor m = past.memory * config.momentum + r * (1.0 - config.momentum);
  const at::Tensor a = config.forward == "routed" ? r : m;
  FfnTensors w;
  for (std::size_t t = 0; t < 4; ++t) w[t] = at::tensordot(a, experts[t].to(at::kDouble), {0}, {0});
  const at::Tensor out = at::linear(at::gelu(at::linear(x.to(at::kDouble), w[0], w[1])), w[2], w[3]);
  const at::Tensor loss = (out - y.to(at::kDouble)).pow(2).mean() + config.balance * (m * m.log()).sum();
  return torch::autograd::grad({loss}, {router})[0];
}

void expect_close(const at::Tensor& found, const at::Tensor& expected, double tolerance) {
  const double error = (found.to(at::kDouble) - expected).norm().item<double>();
  EXPECT_LE(error, tolerance * expected.norm().item<double>());
}

void check_gradients(const FusionConfig& config, std::int64_t micro_batch, double smallest = 1e-3) {
  Watched watched(config);
  Past past;
  for (int step = 0; step < 5; ++step) {
    const auto seed = static_cast<std::uint64_t>(100 + step);
    const at::Tensor x = normal_numbers({8, kWatchedTokens, kWatchedDim}, seed),
                     y = normal_numbers({8, kWatchedTokens, kWatchedDim}, seed + 50);
    const Past now{x, watched.state("router.weight"), watched.state("memory")};
    if (config.forward != "memory") past = now;
    watched.forward_backward(x, y, micro_batch, step);
    FfnTensors experts;
    for (std::size_t t = 0; t < 4; ++t) experts[t] = watched.bank->expert_tensors()[t].clone();
    watched.bank->update(AdamWConfig(), 1e-2, 2e-2, step + 1, 0.5f);
    const at::Tensor& found = watched.bank->router()->router_gradient();
    if (past.x.defined()) {
      const at::Tensor expected = expected_gradient(config, past, experts, x, y);
      EXPECT_GT(expected.norm().item<double>(), smallest);
      expect_close(found, expected, 1e-5);
    } else {
      EXPECT_EQ(found.abs().max().item<float>(), 0.0f);  // step 0 has no step before it
    }
    past = now;
  }
}

TEST(RouterMemory, GradientThroughTheStepBeforeIsAutograds) {
  check_gradients(memory_config("memory"), 8);
}

TEST(RouterMemory, GradientOverFourMicroBatchesIsAutograds) {
  check_gradients(memory_config("memory"), 2);
}

TEST(RouterMemory, GradientOverUnequalMicroBatchesIsAutograds) {
  check_gradients(memory_config("memory"), 3);
}

TEST(RouterMemory, GradientOfBlendIsAutograds) {
  check_gradients(memory_config("blend"), 8);
}

TEST(RouterMemory, GradientOfRoutedIsAutograds) {
  check_gradients(memory_config("routed"), 8);
}

// Prices of nearly equal experts differ in their last digits only; a gradient that sums them as they are
// drowns.
TEST(RouterMemory, GradientIsExactForNearlyEqualExperts) {
  FusionConfig config = memory_config("memory");
  config.init = "copy_noise";
  config.noise = 1e-3;
  config.balance = 0.0;
  check_gradients(config, 8, 1e-7);
}

// m_t = momentum m_{t-1} + (1 - momentum) r_t from 1/N on, and which of these fuses the experts.
TEST(RouterMemory, WeightsAreThoseOfTheirForm) {
  for (const std::string forward : {"memory", "blend", "routed"}) {
    const FusionConfig config = memory_config(forward);
    Watched watched(config);
    at::Tensor m = at::full({4}, 0.25, at::kDouble);
    for (int step = 0; step < 4; ++step) {
      const at::Tensor x = normal_numbers({4, kWatchedTokens, kWatchedDim}, static_cast<std::uint64_t>(step));
      const at::Tensor r =
          routing(x.to(at::kDouble), watched.state("router.weight").to(at::kDouble), config.temperature);
      const at::Tensor next = m * config.momentum + r * (1.0 - config.momentum);
      const at::Tensor used = forward == "memory" ? m : forward == "blend" ? next : r;
      watched.forward_backward(x, x, 4, step);
      for (std::size_t t = 0; t < 4; ++t) {
        expect_close(watched.flat->slots()[t].parameter.detach(),
                     at::tensordot(used, watched.bank->expert_tensors()[t].to(at::kDouble), {0}, {0}), 1e-6);
      }
      watched.bank->update(AdamWConfig(), 1e-2, 2e-2, step + 1, 1.0f);
      m = next;
      expect_close(watched.state("memory"), m, 1e-6);
      for (std::size_t t = 0; t < 4; ++t) {  // between steps the model is the collapsed one
        expect_close(watched.flat->slots()[t].parameter.detach(),
                     at::tensordot(m, watched.bank->expert_tensors()[t].to(at::kDouble), {0}, {0}), 1e-6);
      }
    }
    EXPECT_GT((m - 0.25).abs().max().item<double>(), 0.01);
  }
}

TEST(RouterMemory, AnAbandonedStepLeavesNoTrace) {
  for (const std::string forward : {"memory", "blend", "routed"}) {
    FusionConfig config = memory_config(forward);
    config.dirichlet = 2.0;
    Watched watched(config), other(config);
    const at::Tensor x = normal_numbers({4, kWatchedTokens, kWatchedDim}, 1),
                     y = normal_numbers({4, kWatchedTokens, kWatchedDim}, 2);
    const auto run = [&](Watched& target, int step) {
      target.forward_backward(x, y, 4, step);
      target.bank->update(AdamWConfig(), 1e-2, 2e-2, step + 1, 1.0f);
    };
    run(watched, 0);
    run(other, 0);
    other.forward_backward(y, x, 4, 1);
    other.bank->abandon_step();
    EXPECT_TRUE(at::equal(watched.flat->values(), other.flat->values())) << forward;
    run(watched, 2);
    run(other, 2);
    EXPECT_TRUE(at::equal(watched.flat->values(), other.flat->values())) << forward;
    EXPECT_TRUE(at::equal(watched.state("router.weight"), other.state("router.weight"))) << forward;
    EXPECT_TRUE(at::equal(watched.state("memory"), other.state("memory"))) << forward;
  }
}

TEST(RouterMemory, PreviewUsesTheRoutingOfItsInputAndRestoresTheCollapsedModel) {
  FusionConfig config = memory_config("routed");
  Watched watched(config);
  const at::Tensor collapsed = watched.flat->values().clone();
  const at::Tensor x = normal_numbers({3, kWatchedTokens, kWatchedDim}, 5);
  watched.bank->begin_preview(0);
  watched.ffn->forward(x);
  const at::Tensor r =
      routing(x.to(at::kDouble), watched.state("router.weight").to(at::kDouble), config.temperature);
  expect_close(watched.flat->slots()[0].parameter.detach(),
               at::tensordot(r, watched.bank->expert_tensors()[0].to(at::kDouble), {0}, {0}), 1e-6);
  watched.bank->end_preview();
  EXPECT_TRUE(at::equal(watched.flat->values(), collapsed));
}

TEST(RouterMemory, AMemoryThatIsNoDistributionIsRefused) {
  Watched watched(memory_config("memory"));
  for (const auto& [name, tensor] : watched.bank->expert_state()) {
    if (name == "mlp.memory") tensor.fill_(0.4);
  }
  EXPECT_THROW(watched.bank->restored(), CheckpointError);
}

}  // namespace
}  // namespace exfusion
