// The CUDA kernels of the one-pass update, played thread by thread on the CPU, against the CPU's own: bit for
// bit.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "fusion/device_update.h"
#include "fusion/fused_walk.h"
#include "numbers.h"
#include "optim/adamw.h"
#include "support/play_grid.h"

namespace exfusion {
namespace {

ExpertTensors<float> tensors_of(Experts<float>& experts, const at::Tensor& g,
                                std::vector<float*> (&rows)[3]) {
  rows[0] = Experts<float>::rows(experts.w);
  rows[1] = Experts<float>::rows(experts.m);
  rows[2] = Experts<float>::rows(experts.v);
  return {experts.size, experts.fused.mutable_data_ptr<float>(), g.const_data_ptr<float>(), rows[0], rows[1],
          rows[2]};
}

std::vector<float> walk_weights(std::int64_t experts, int shift) {
  std::vector<float> a(static_cast<std::size_t>(experts));
  for (std::size_t k = 0; k < a.size(); ++k)
    a[k] =
        0.1f + 0.07f * static_cast<float>((k + static_cast<std::size_t>(shift)) % 5) - (k == 2 ? 0.3f : 0.0f);
  return a;
}

void expect_bits(std::int64_t count, std::int64_t size) {
  Experts<float> played(count, size, 11), cpu(count, size, 11);
  std::vector<float*> rows[3];
  for (int step = 1; step <= 3; ++step) {
    const at::Tensor g = normal_numbers({size}, 50 + static_cast<std::uint64_t>(step));
    const std::vector<float> a = walk_weights(count, step), next = walk_weights(count, step + 1);
    const auto scalars = adamw_scalars<float>(AdamWConfig(), 1e-2, 0.05, step);
    const FusedWalk body(tensors_of(played, g, rows), a, next, 0.37f, scalars);
    // The slices of experts of an odd size cannot all start where a vector may.
    EXPECT_EQ(body.fits(), size % kVectorWidth == 0 || count == 1) << size;
    play_walk(size, body);
    cpu.update(g, a, next, 0.37f, scalars);
    ASSERT_TRUE(at::equal(played.fused, cpu.fused)) << count << " experts of " << size;
    const at::Tensor fused = played.fused.clone();
    played.fused.zero_();
    play_walk(size, FuseWalk(tensors_of(played, g, rows), next));
    ASSERT_TRUE(at::equal(played.fused, fused)) << count << " experts of " << size;
  }
  EXPECT_TRUE(at::equal(played.w, cpu.w) && at::equal(played.m, cpu.m) && at::equal(played.v, cpu.v));
}

TEST(CudaWalk, OfTheFusedUpdateHasTheBitsOfTheCpuKernel) {
  for (const std::int64_t count : {1, 2, 4, 7, 16, 64}) {
    for (const std::int64_t size : {1, 3, 4, 17, 1024, 2'050, 5'001}) expect_bits(count, size);
  }
}

TEST(Device, OfTheCpuTakesTheCpuKernels) {
  const std::int64_t size = 4'099;
  Experts<float> ours(3, size, 4), cpu(3, size, 4);
  const at::Tensor g = normal_numbers({size}, 5);
  const std::vector<float> a = walk_weights(3, 1);
  const auto scalars = adamw_scalars<float>(AdamWConfig(), 1e-2, 0.05, 1);
  std::vector<float*> rows[3];
  fused_update_on(at::kCPU, tensors_of(ours, g, rows), a, a, 1.0f, scalars);
  cpu.update(g, a, a, 1.0f, scalars);
  EXPECT_TRUE(at::equal(ours.fused, cpu.fused) && at::equal(ours.w, cpu.w));
}

}  // namespace
}  // namespace exfusion
