#include "nn/small_matmul.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "module_values.h"

namespace exfusion {
namespace {

// Rows of more numbers than are used, as in the scratch space of the attention kernel.
constexpr std::int64_t kGap = 5;

TEST(SmallMatmul, IsTheProductOfAMatrixOrItsTranspose) {
  for (const std::int64_t columns : {16, 32, 48, 64, 112}) {
    for (const std::int64_t rows : {1, 5, 8, 17, 50}) {
      const std::int64_t depth = 23, a_row = depth + kGap, b_row = columns + kGap;
      const at::Tensor a = random_values({rows, a_row}, 1), b = random_values({depth, b_row}, 2);
      const at::Tensor expected =
          a.narrow(1, 0, depth).to(at::kDouble).mm(b.narrow(1, 0, columns).to(at::kDouble));
      const at::Tensor c = at::full({rows, columns + kGap}, 7.0f);
      const auto check = [&] {
        EXPECT_LT(largest_difference(c.narrow(1, 0, columns), expected), 1e-5) << rows << " " << columns;
        EXPECT_TRUE(c.narrow(1, columns, kGap).eq(7.0f).all().item<bool>());
      };
      small_matmul(rows, columns, depth, a.data_ptr<float>(), a_row, 1, b.data_ptr<float>(), b_row,
                   c.data_ptr<float>(), columns + kGap);
      check();
      const at::Tensor transposed = a.t().contiguous();
      c.narrow(1, 0, columns).zero_();
      small_matmul(rows, columns, depth, transposed.data_ptr<float>(), 1, rows, b.data_ptr<float>(), b_row,
                   c.data_ptr<float>(), columns + kGap);
      check();
    }
  }
}

TEST(SmallTranspose, PadsWithZeros) {
  for (const std::int64_t rows : {1, 16, 17, 50}) {
    const std::int64_t columns = 32, wide = (rows + 15) / 16 * 16;
    const at::Tensor from = random_values({rows, columns + kGap}, 1), to = at::full({columns, wide}, 7.0f);
    small_transpose(rows, columns, from.data_ptr<float>(), columns + kGap, to.data_ptr<float>(), wide);
    EXPECT_TRUE(to.narrow(1, 0, rows).equal(from.narrow(1, 0, columns).t()));
    EXPECT_TRUE(to.narrow(1, rows, wide - rows).eq(0.0f).all().item<bool>());
  }
}

}  // namespace
}  // namespace exfusion
