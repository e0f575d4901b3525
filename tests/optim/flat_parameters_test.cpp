#include "optim/flat_parameters.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <stdexcept>

#include "optim/adamw.h"
#include "optim/ema.h"

namespace exfusion {
namespace {

std::vector<ParameterSlot> odd_slots() {
  at::manual_seed(5);
  std::vector<ParameterSlot> slots(3);
  slots[0] = {.name = "fc.weight", .parameter = at::randn({5, 7}), .decay = true};
  slots[1] = {.name = "fc.bias", .parameter = at::randn({5})};
  slots[2] = {.name = "scale", .parameter = at::randn({})};
  for (ParameterSlot& slot : slots) slot.parameter.set_requires_grad(true);
  return slots;
}

at::Tensor loss_of(const std::vector<ParameterSlot>& slots, const at::Tensor& x) {
  return (at::linear(x, slots[0].parameter, slots[1].parameter) * slots[2].parameter).pow(2).sum();
}

TEST(FlatParameters, KeepsValuesAndAliasesThem) {
  const std::vector<ParameterSlot> slots = odd_slots();
  std::vector<at::Tensor> before;
  for (const ParameterSlot& slot : slots) before.push_back(slot.parameter.detach().clone());
  const FlatParameters flat(slots);
  ASSERT_EQ(flat.values().numel(), 48 + 16 + 16);
  for (std::size_t i = 0; i < 3; ++i) {
    const ParameterSlot& slot = flat.slots()[i];
    EXPECT_EQ(slot.offset % 16, 0);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(slots[i].parameter.data_ptr()) % 64, 0u);
    EXPECT_EQ(slots[i].parameter.data_ptr<float>(),
              flat.values().data_ptr<float>() + slot.offset);  // the module's leaf
    EXPECT_TRUE(slots[i].parameter.is_leaf() && slots[i].parameter.requires_grad());
    EXPECT_TRUE(at::equal(slots[i].parameter, before[i]));
  }
  flat.values().fill_(2.0);
  EXPECT_EQ(slots[0].parameter[4][6].item<float>(), 2.0f);
}

// "meta" is a device that computes shapes alone: buffers that are made elsewhere than the parameters show up
// on it.
TEST(FlatParameters, LivesOnTheDeviceOfItsParametersAndSoDoesWhatFollowsIt) {
  std::vector<ParameterSlot> slots = odd_slots();
  for (ParameterSlot& slot : slots) slot.parameter = at::empty(slot.parameter.sizes(), at::kMeta);
  FlatParameters flat(slots);
  const DenseAdamW optimizer(flat, 0, 2);
  WeightEma average(flat, 0.9);
  average.swap();
  std::vector<at::Tensor> tensors = {flat.values(), flat.gradients(), slots[0].parameter,
                                     slots[0].parameter.grad()};
  for (const auto& [name, tensor] : optimizer.state()) tensors.push_back(tensor);
  for (const auto& [name, tensor] : average.state()) tensors.push_back(tensor);
  for (const at::Tensor& tensor : tensors) EXPECT_TRUE(tensor.is_meta());

  slots[1].parameter = at::zeros({5});
  EXPECT_THROW(FlatParameters{slots}, std::invalid_argument);
}

TEST(FlatParameters, GradientsStayViewsOverSeveralBackwardPasses) {
  FlatParameters flat(odd_slots());
  const std::vector<ParameterSlot>& slots = flat.slots();
  const at::Tensor x = at::randn({3, 7});
  std::vector<at::Tensor> parameters;
  for (const ParameterSlot& slot : slots) parameters.push_back(slot.parameter);
  for (int step = 0; step < 2; ++step) {
    flat.zero_gradients();
    for (int micro_batch = 0; micro_batch < 3; ++micro_batch) loss_of(slots, x).backward();
    // The gradients of three passes by hand.
    const at::Tensor y = at::linear(x, slots[0].parameter, slots[1].parameter).detach();
    const at::Tensor scale = slots[2].parameter.detach(), dy = 2 * y * scale * scale;
    const std::vector<at::Tensor> expected = {3 * dy.t().matmul(x), 3 * dy.sum(0),
                                              3 * (2 * y * y * scale).sum()};
    for (std::size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(slots[i].parameter.grad().data_ptr<float>(),
                flat.gradients().data_ptr<float>() + slots[i].offset);
      EXPECT_TRUE(at::allclose(slots[i].parameter.grad(), expected[i], 1e-5, 1e-5)) << slots[i].name;
    }
  }
  const auto padding = [](const at::Tensor& buffer) {
    return buffer.narrow(0, 35, 13).abs().sum().item<float>();
  };
  EXPECT_EQ(padding(flat.gradients()), 0.0f);
  EXPECT_EQ(padding(flat.values()), 0.0f);
}

TEST(FlatParameters, RefusesOtherTypes) {
  std::vector<ParameterSlot> slots = odd_slots();
  slots[1].parameter = at::zeros({5}, at::kDouble);
  EXPECT_THROW(FlatParameters{slots}, std::invalid_argument);
}

TEST(DenseAdamW, UpdatesItsSlotsOnlyAndDecaysWhereAsked) {
  FlatParameters flat(odd_slots());
  DenseAdamW optimizer(flat, 0, 2);
  AdamWConfig config;
  config.eps = 0.0;
  flat.gradients().fill_(4.0);
  const at::Tensor before = flat.values().clone();
  optimizer.step(config, 0.1, 1, 0.5f);  // the first step is lr in size, whatever the gradient
  const auto part = [&](const at::Tensor& x, std::size_t i) {
    return x.narrow(0, flat.slots()[i].offset, flat.slots()[i].size);
  };
  EXPECT_TRUE(at::allclose(part(flat.values(), 0), part(before, 0) * (1 - 0.1 * 0.05) - 0.1, 0, 1e-6));
  EXPECT_TRUE(at::allclose(part(flat.values(), 1), part(before, 1) - 0.1, 0, 1e-6));
  EXPECT_TRUE(at::equal(part(flat.values(), 2), part(before, 2)));
}

TEST(DenseAdamW, GoesOnFromACopiedStateBitForBit) {
  AdamWConfig config;
  FlatParameters first(odd_slots()), second(odd_slots());
  DenseAdamW one(first, 1, 3), two(second, 1, 3);
  const auto steps = [&](FlatParameters& flat, DenseAdamW& optimizer, int begin, int end) {
    for (int t = begin; t <= end; ++t) {
      at::manual_seed(static_cast<std::uint64_t>(t));
      flat.gradients().copy_(at::randn_like(flat.gradients()));
      optimizer.step(config, 1e-2, t, 0.7f);
    }
  };
  steps(first, one, 1, 4);
  second.values().copy_(first.values());
  const NamedTensors from = one.state(), to = two.state();
  ASSERT_EQ(from.size(), 4u);
  EXPECT_EQ(from[0].first, "exp_avg.fc.bias");
  EXPECT_EQ(from[3].first, "exp_avg_sq.scale");
  for (std::size_t i = 0; i < from.size(); ++i) at::Tensor(to[i].second).copy_(from[i].second);
  steps(first, one, 5, 9);
  steps(second, two, 5, 9);
  EXPECT_TRUE(at::equal(first.values(), second.values()));
}

TEST(WeightEma, IsAGeometricSum) {
  FlatParameters flat(odd_slots());
  const at::Tensor start = flat.values().clone();
  WeightEma ema(flat, 0.9);
  flat.values().fill_(3.0);
  for (int step = 0; step < 20; ++step) ema.update();
  const double kept = std::pow(0.9, 20);
  const NamedTensors state = ema.state();
  EXPECT_EQ(state[1].first, "fc.bias");
  EXPECT_TRUE(at::allclose(state[1].second, start.narrow(0, 48, 5) * kept + 3.0 * (1.0 - kept), 0, 1e-6));
}

TEST(WeightEma, SwapsThereAndBack) {
  FlatParameters flat(odd_slots());
  const at::Tensor start = flat.values().clone();
  WeightEma ema(flat, 0.5);
  flat.values().add_(1.0);
  ema.update();
  const at::Tensor trained = flat.values().clone();
  ema.swap();
  EXPECT_TRUE(at::allclose(flat.values(), start + 0.5, 0, 1e-6));
  EXPECT_TRUE(at::equal(ema.state()[0].second.view({35}), trained.narrow(0, 0, 35)));
  ema.swap();
  EXPECT_TRUE(at::equal(flat.values(), trained));
}

}  // namespace
}  // namespace exfusion
