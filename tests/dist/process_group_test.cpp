#include "dist/process_group.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "ranks.h"

namespace exfusion {
namespace {

TEST(ProcessGroup, ReducesOverRanksAndCountsItsPayload) {
  with_ranks(3, [](const ProcessGroup& group) {
    const at::Tensor x = at::full({5}, static_cast<double>(group.rank() + 1), at::kFloat);
    group.all_reduce(x);
    EXPECT_TRUE(at::equal(x, at::full({5}, 6.0f)));
    EXPECT_EQ(group.traffic().at("all_reduce").calls, 1);
    EXPECT_EQ(group.traffic().at("all_reduce").bytes, 20);
    std::vector<double> sums = {1.0, static_cast<double>(group.rank())};
    group.sum(sums);
    EXPECT_EQ(sums, (std::vector<double>{3.0, 3.0}));
  });
}

// Rank r sends q + 1 elements of value 10 r + q to rank q.
TEST(ProcessGroup, ExchangesPartsOfUnequalSize) {
  with_ranks(3, [](const ProcessGroup& group) {
    const auto rank = static_cast<double>(group.rank());
    const at::Tensor input = at::tensor({10.0f, 11.0f, 11.0f, 12.0f, 12.0f, 12.0f}) + 10.0 * (rank - 1.0);
    const std::int64_t size = group.rank() + 1;
    const at::Tensor output = at::zeros({3 * size});
    group.start_all_to_all(output, {size, size, size}, input, {1, 2, 3}).wait();
    for (std::int64_t from = 0; from < 3; ++from)
      EXPECT_TRUE(
          at::equal(output.narrow(0, from * size, size), at::full({size}, 10.0 * from + rank, at::kFloat)));
    EXPECT_EQ(group.traffic().at("all_to_all").bytes, 4 * (6 - size));
  });
}

TEST(ProcessGroup, GathersPartsOfUnequalSize) {
  with_ranks(3, [](const ProcessGroup& group) {
    const std::vector<std::int64_t> cuts = {0, 2, 2, 7};  // rank 1 holds nothing
    const at::Tensor x = at::zeros({7});
    const auto r = static_cast<std::size_t>(group.rank());
    x.narrow(0, cuts[r], cuts[r + 1] - cuts[r]).fill_(group.rank() + 1);
    group.all_gather(x, cuts);
    EXPECT_TRUE(at::equal(x, at::tensor({1.0f, 1.0f, 3.0f, 3.0f, 3.0f, 3.0f, 3.0f})));
  });
}

TEST(ProcessGroup, SendsFromOneToAnother) {
  with_ranks(2, [](const ProcessGroup& group) {
    const at::Tensor x = at::full({4}, group.rank() == 1 ? 7.0 : 0.0);
    group.rank() == 1 ? group.send(x, 0) : group.receive(x, 1);
    EXPECT_TRUE(at::equal(x, at::full({4}, 7.0)));
    group.barrier();
  });
}

TEST(ProcessGroup, AloneChangesNothing) {
  const ProcessGroup group;
  EXPECT_EQ(group.world(), 1);
  const at::Tensor x = at::arange(4), y = at::zeros({4}, at::kLong);
  group.all_reduce(x);
  group.start_all_to_all(y, {4}, x, {4}).wait();
  EXPECT_TRUE(at::equal(x, at::arange(4)));
  EXPECT_TRUE(at::equal(y, x));
  EXPECT_TRUE(group.traffic().empty());
}

}  // namespace
}  // namespace exfusion
