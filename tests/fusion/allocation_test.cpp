// The update pass allocates nothing: a count of operator new, which is replaced for the whole test program.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "fusion/expert_bank.h"
#include "nn/ffn.h"
#include "numbers.h"
#include "optim/reduction.h"

namespace {
std::atomic<std::int64_t> allocations = 0;
}

void* operator new(std::size_t bytes) {
  ++allocations;
  if (void* memory = std::malloc(bytes == 0 ? 1 : bytes)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}

namespace exfusion {
namespace {

constexpr std::int64_t kDim = 24, kHidden = 96;

std::int64_t allocations_during(const auto& work) {
  const std::int64_t before = allocations;
  work();
  return allocations - before;
}

// A step as training takes it, but for the forward and backward pass.
void update_step(FlatParameters& flat, DenseAdamW& dense, ExpertBank& bank, std::int64_t step) {
  sum_of_squares(flat.gradients().const_data_ptr<float>(), flat.gradients().numel());
  dense.step(AdamWConfig(), 1e-3, step, 0.5f);
  bank.update(AdamWConfig(), 1e-3, 1e-3, step, 0.5f);
}

TEST(Allocations, AreCountedHere) {
  EXPECT_GE(allocations_during([] { at::empty({3}); }), 1);
}

TEST(Allocations, NoneInTheUpdatePass) {
  for (const std::string mode :
       {"static", "learned", "memory", "blend", "routed", "noise", "raw", "shared"}) {
    FusionConfig config;
    config.experts = 5;
    const bool routes = mode == "memory" || mode == "blend" || mode == "routed";
    config.weights = routes ? "memory" : mode == "static" ? "static" : "learned";
    if (routes) config.forward = mode;
    if (mode == "shared") config.state = "shared_moments";
    if (mode == "raw") config.normalize = "none";
    if (mode == "noise") config.dirichlet = config.expert_dropout = 0.5;
    std::vector<ParameterSlot> slots;
    for (int i = 0; i < 2; ++i) {
      for (const at::Tensor& value : initial_ffn(kDim, kHidden, 1, i, 0))
        slots.push_back({.name = "", .parameter = value, .decay = true});
    }
    FlatParameters flat(slots);
    flat.keep_bf16();
    DenseAdamW dense(flat, 0, 4);
    ExpertBank bank(config, flat, 4, "mlp", 1, 3);
    const at::Tensor x = normal_numbers({2, 7, kDim}, 8);
    for (int step = 1; step <= 4; ++step) {
      flat.gradients().copy_(normal_numbers({flat.gradients().numel()}, static_cast<std::uint64_t>(step)));
      const std::int64_t begun = allocations_during([&] { bank.begin_step(step, 2); });
      bank.see_input(x);
      const std::int64_t updated = allocations_during([&] { update_step(flat, dense, bank, step); });
      if (step <= 2) continue;  // scratch space grows to its size
      EXPECT_EQ(begun, 0) << mode;
      EXPECT_EQ(updated, 0) << mode;
    }
  }
}

}  // namespace
}  // namespace exfusion
