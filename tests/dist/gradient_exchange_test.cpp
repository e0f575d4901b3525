#include "dist/gradient_exchange.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <vector>

#include "core/error.h"
#include "ranks.h"

namespace exfusion {
namespace {

// y = sum over layers of (x w_i) as a chain; parameters of odd sizes in a flat buffer, two units.
struct Chain {
  explicit Chain(const ProcessGroup& group, bool sharded) {
    const std::vector<std::int64_t> sizes = {7 * 7, 7 * 7, 7 * 7};
    gradients = at::zeros({3 * 64});
    std::vector<ExchangedParameter> parameters;
    for (std::int64_t i = 0; i < 3; ++i) {
      const at::Tensor value = at::sin(at::arange(49 * i, 49 * (i + 1), at::kFloat)).view({7, 7});
      weights.push_back(value.requires_grad_());
      weights.back().mutable_grad() = gradients.narrow(0, 64 * i, 49).view({7, 7});
      parameters.push_back({"w" + std::to_string(i), weights.back(), 64 * i});
    }
    const std::vector<std::int64_t> boundaries = {0, 64, 128};
    std::vector<ExchangeUnit> units = {{0, 64, cut_evenly(0, 64, boundaries, group.world()), false},
                                       {64, 192, cut_evenly(64, 192, boundaries, group.world()), sharded}};
    exchange = std::make_unique<GradientExchange>(group, gradients, units, parameters);
  }
  at::Tensor loss(const at::Tensor& x) const {
    at::Tensor y = x;
    for (const at::Tensor& w : weights) y = at::tanh(at::matmul(y, w));
    return y.sum();
  }
  at::Tensor gradients;
  std::vector<at::Tensor> weights;
  std::unique_ptr<GradientExchange> exchange;
};

at::Tensor inputs() {
  return at::cos(at::arange(24 * 7, at::kFloat)).view({24, 7});
}

at::Tensor reference() {
  Chain chain(ProcessGroup(), false);
  chain.loss(inputs()).backward();
  return chain.gradients;
}

// Rows of the rank in two micro-batches; the exchange overlaps with the second one's backward pass.
void expect_sums(int world, bool sharded) {
  const at::Tensor expected = reference();
  with_ranks(world, [&](const ProcessGroup& group) {
    Chain chain(group, sharded);
    const std::int64_t first = 24 * group.rank() / world, last = 24 * (group.rank() + 1) / world;
    for (int step = 0; step < 3; ++step) {
      chain.gradients.zero_();
      chain.loss(inputs().slice(0, first, first + 2)).backward();
      chain.exchange->begin_last_pass();
      chain.loss(inputs().slice(0, first + 2, last)).backward();
      chain.exchange->finish();
      for (std::int64_t i = 0; i < 3; ++i) {
        const auto [begin, end] = chain.exchange->owned(64 * i, 64 * (i + 1));
        EXPECT_TRUE(
            at::allclose(chain.gradients.slice(0, begin, end), expected.slice(0, begin, end), 1e-5, 1e-6));
      }
      at::Tensor gathered = chain.gradients.clone();
      wait_for(chain.exchange->start_gather(gathered, 0, 192));
      EXPECT_TRUE(at::allclose(gathered, expected, 1e-5, 1e-6));
    }
  });
}

TEST(GradientExchange, SumsOverRanksAndMicroBatches) {
  expect_sums(2, false);
  expect_sums(3, false);
}

TEST(GradientExchange, OwnersOfPartsHoldTheirSums) {
  expect_sums(2, true);
  expect_sums(3, true);
}

TEST(GradientExchange, LeavesGiveTheSameBitsForAnyNumberOfRanksAndShards) {
  at::Tensor expected;
  for (const bool sharded : {false, true}) {
    for (const int world : {1, 2, 3, 4}) {
      std::vector<at::Tensor> results(static_cast<std::size_t>(world));
      with_ranks(world, [&](const ProcessGroup& group) {
        Chain chain(group, sharded);
        const auto [first, last] = leaves_of_rank(12, group.rank(), world);
        TreeSum leaves(12);
        for (std::int64_t leaf = first; leaf < last; ++leaf) {
          chain.gradients.zero_();
          chain.loss(inputs().slice(0, 2 * leaf, 2 * leaf + 2).clone()).backward();
          leaves.push({0, leaf}, chain.gradients.clone());
        }
        chain.exchange->finish(leaves, 12, 1.0f / 24.0f);
        at::Tensor gathered = chain.gradients.clone();
        wait_for(chain.exchange->start_gather(gathered, 0, 192));
        results[static_cast<std::size_t>(group.rank())] = gathered;
      });
      if (!expected.defined()) expected = results[0];
      for (const at::Tensor& result : results) EXPECT_TRUE(at::equal(result, expected)) << world << sharded;
    }
  }
  EXPECT_TRUE(at::allclose(expected * 24.0, reference(), 1e-5, 1e-6));
}

TEST(GradientExchange, AParameterOutsideTheGraphIsNamed) {
  with_ranks(2, [&](const ProcessGroup& group) {
    Chain chain(group, false);
    chain.exchange->begin_last_pass();
    at::tanh(at::matmul(inputs(), chain.weights[0])).sum().backward();
    try {
      chain.exchange->finish();
      FAIL();
    } catch (const GraphError& error) {
      EXPECT_NE(std::string(error.what()).find("w1 received no gradient"), std::string::npos);
    }
  });
}

}  // namespace
}  // namespace exfusion
