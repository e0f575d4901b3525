// The CUDA kernels of this layer, played thread by thread on the CPU, against the CPU's own kernels: bit for
// bit.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "core/error.h"
#include "optim/adamw.h"
#include "optim/adamw_walk.h"
#include "optim/cuda_kernels.h"
#include "optim/device.h"
#include "optim/reduction_walk.h"
#include "support/play_grid.h"

namespace exfusion {
namespace {

std::vector<float> float_numbers(std::int64_t n, std::uint64_t seed) {
  std::mt19937_64 bits(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<std::size_t>(n));
  for (float& value : x) value = normal(bits);
  return x;
}

const std::int64_t kWalkSizes[] = {1, 3, 4, 5, 1023, 4095, 4096, 4097, 65'539};

// `shift` elements off the alignment of a vector: the walk one by one.
void expect_adamw_bits(std::int64_t n, std::int64_t shift) {
  at::Tensor ours[3], theirs[3];
  for (int t = 0; t < 3; ++t) {
    ours[t] = at::zeros({n + shift});
    if (t == 0) std::ranges::copy(float_numbers(n + shift, 1), ours[t].mutable_data_ptr<float>());
    theirs[t] = ours[t].clone();
  }
  const auto from = [&](const at::Tensor& x) { return x.mutable_data_ptr<float>() + shift; };
  for (int step = 1; step <= 3; ++step) {
    at::Tensor g = at::empty({n + shift});
    std::ranges::copy(float_numbers(n + shift, 10 + static_cast<std::uint64_t>(step)),
                      g.mutable_data_ptr<float>());
    const auto scalars = adamw_scalars<float>(AdamWConfig(), 1e-2, 0.05, step);
    const AdamWWalk body{from(ours[0]), from(ours[1]), from(ours[2]), from(g), 0.37f, scalars};
    EXPECT_EQ(body.fits(), shift % kVectorWidth == 0);
    play_walk(n, body);
    adamw_update<float>(n, from(theirs[0]), from(theirs[1]), from(theirs[2]), from(g), 0.37f, scalars);
  }
  for (int t = 0; t < 3; ++t) EXPECT_TRUE(at::equal(ours[t], theirs[t])) << n << " elements, tensor " << t;
}

TEST(CudaWalk, OfAdamWHasTheBitsOfTheCpuKernel) {
  for (const std::int64_t n : kWalkSizes) {
    for (const std::int64_t shift : {0, 1, 4}) expect_adamw_bits(n, shift);
  }
}

// What reduction.cu does with shuffles and barriers, in loops.
std::vector<double> played_products(const std::vector<float>& g, const std::vector<const float*>& w,
                                    bool in_double) {
  BlockProducts products{
      g.data(), {}, static_cast<std::int64_t>(g.size()), static_cast<std::int64_t>(w.size()), {}, in_double};
  std::copy(w.begin(), w.end(), products.w);
  const std::int64_t blocks = products.blocks();
  std::vector<double> sums(static_cast<std::size_t>(products.items()));
  for (std::int64_t item = 0; item < products.items(); ++item) {
    double lanes[kReductionLanes];
    for (std::int64_t lane = 0; lane < kReductionLanes; ++lane) lanes[lane] = products.lane_sum(item, lane);
    for (std::int64_t step = kReductionLanes / 2; step >= 1; step /= 2) {
      for (std::int64_t lane = 0; lane < step; ++lane) lanes[lane] += lanes[lane + step];
    }
    sums[static_cast<std::size_t>(item)] = lanes[0];
  }
  std::vector<double> result;
  for (std::size_t k = 0; k < w.size(); ++k) {
    double* x = &sums[k * static_cast<std::size_t>(blocks)];
    std::int64_t left = blocks;
    for (std::int64_t step = tree_step(blocks); step >= 1; step /= 2) {
      for (std::int64_t thread = kBlockThreads - 1; thread >= 0; --thread)  // any order gives the same
        tree_level(x, left, step, thread, kBlockThreads);
      left = std::min(left, step);
    }
    result.push_back(x[0]);
  }
  return result;
}

TEST(CudaWalk, OfReductionsHasTheBitsOfTheCpuKernel) {
  for (const std::int64_t n : {1, 15, 17, 127, 129, 300, 4095, 4096, 4097, 12'289, 2'000'003}) {
    const std::vector<float> g = float_numbers(n, 1), x = float_numbers(n, 2), y = float_numbers(n, 3);
    const std::vector<const float*> w = {x.data(), y.data(), g.data()};
    std::vector<double> expected(w.size());
    inner_products<float>(g.data(), w, n, expected);
    EXPECT_EQ(played_products(g, w, false), expected) << n;
    EXPECT_EQ(played_products(g, {g.data()}, true)[0], sum_of_squares(g.data(), n)) << n;
  }
}

TEST(CudaWalk, StepsThroughTheTreeOfAnyNumberOfBlocks) {
  const std::pair<int, int> expected[] = {{1, 0}, {2, 1}, {3, 2}, {4, 2},
                                          {5, 4}, {8, 4}, {9, 8}, {1025, 1024}};
  for (const auto& [n, step] : expected) EXPECT_EQ(tree_step(n), step) << n;
}

TEST(Device, OfTheCpuTakesTheCpuKernels) {
  const std::vector<float> x = float_numbers(5'001, 4);
  EXPECT_EQ(sum_of_squares_on(at::kCPU, x.data(), 5'001), sum_of_squares(x.data(), std::int64_t{5'001}));
}

TEST(Device, WithoutCudaSaysSo) {
  if (built_with_cuda()) GTEST_SKIP() << "this build has CUDA";
  float x = 0.0f;
  EXPECT_THROW(adamw_update_cuda(1, &x, &x, &x, &x, 1.0f, {}, nullptr), Failure);
}

}  // namespace
}  // namespace exfusion
