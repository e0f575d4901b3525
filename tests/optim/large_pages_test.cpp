#include "optim/large_pages.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstdint>

namespace exfusion {
namespace {

TEST(LargePages, AreTensorsOfZerosOfAnySize) {
  for (const std::int64_t rows : {1, 524'287, 524'288, 524'289, 1'500'001}) {  // 524,288 floats: 2 MiB
    const at::Tensor x = zeros_in_large_pages({rows, 1});
    EXPECT_EQ(x.sizes(), (std::vector<std::int64_t>{rows, 1}));
    EXPECT_TRUE(x.is_contiguous() && x.scalar_type() == at::kFloat);
    EXPECT_EQ(x.count_nonzero().item<std::int64_t>(), 0);
    x.fill_(1.0);
    EXPECT_EQ(x.sum().item<float>(), static_cast<float>(rows));
    const auto alignment = reinterpret_cast<std::uintptr_t>(x.const_data_ptr()) % (std::uintptr_t{2} << 20);
    EXPECT_TRUE(rows < 524'288 || alignment == 0) << rows;
  }
}

}  // namespace
}  // namespace exfusion
