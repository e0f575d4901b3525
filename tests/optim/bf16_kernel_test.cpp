#include "optim/bf16_kernel.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <vector>

#include "core/bfloat16.h"
#include "optim/adamw.h"

namespace exfusion {
namespace {

at::Tensor rounded(const at::Tensor& x) {
  at::Tensor result = at::empty(x.sizes(), at::kBFloat16);
  round_to_bf16(x.numel(), x.const_data_ptr<float>(), static_cast<std::uint16_t*>(result.mutable_data_ptr()));
  return result;
}

at::Tensor bits(const at::Tensor& bf16) {
  return bf16.view(at::kShort);
}

// Every upper half with the lower halves around a tie: all exponents, both zeros, denormals, infinities, NaN.
at::Tensor all_upper_halves() {
  const std::vector<std::int64_t> lower = {0,      1,      2,      0x1234, 0x7ffe, 0x7fff,
                                           0x8000, 0x8001, 0x8002, 0xabcd, 0xfffe, 0xffff};
  const at::Tensor upper = at::arange(0x10000, at::kLong) * 0x10000;
  const at::Tensor words = upper.unsqueeze(1) + at::tensor(lower, at::kLong);
  return words.reshape(-1).to(at::kInt).view(at::kFloat);
}

TEST(Bf16, HasTheBitsOfLibtorch) {
  const at::Tensor x = all_upper_halves(), expected = x.to(at::kBFloat16), found = rounded(x);
  ASSERT_EQ(x.numel(), 12 * 65536);
  const at::Tensor numbers = x.isnan().logical_not();
  EXPECT_TRUE(at::equal(bits(found).masked_select(numbers), bits(expected).masked_select(numbers)));
  // Which NaN libtorch gives depends on its code path.
  EXPECT_TRUE(expected.masked_select(x.isnan()).isnan().all().item<bool>());
  EXPECT_TRUE(bits(found).masked_select(x.isnan()).eq(-1).all().item<bool>());
}

// The loop here is compiled for the baseline instruction set; the kernel is dispatched.
TEST(Bf16, HasTheBitsOfItsElementFunctionForAnyThreads) {
  const at::Tensor x = all_upper_halves().narrow(0, 0, 70'001).contiguous();
  at::Tensor expected = at::empty({x.numel()}, at::kBFloat16);
  for (std::int64_t i = 0; i < x.numel(); ++i)
    static_cast<std::uint16_t*>(expected.mutable_data_ptr())[i] = bf16_element(x.const_data_ptr<float>()[i]);
  const int threads = omp_get_max_threads();
  for (int count : {1, 2, 3}) {
    omp_set_num_threads(count);
    EXPECT_TRUE(at::equal(bits(rounded(x)), bits(expected))) << count;
  }
  omp_set_num_threads(threads);
}

TEST(Bf16, TheDenseUpdateWritesWhatItsWeightsRoundTo) {
  for (const std::int64_t n : {1, 1'003, 40'001}) {
    at::manual_seed(1);
    at::Tensor w = at::randn({n}), m = at::zeros({n}), v = at::zeros({n});
    const at::Tensor g = at::randn({n});
    at::Tensor copy = at::zeros({n}, at::kBFloat16);
    adamw_update<float>(n, w.mutable_data_ptr<float>(), m.mutable_data_ptr<float>(),
                        v.mutable_data_ptr<float>(), g.const_data_ptr<float>(), 0.5f,
                        adamw_scalars<float>(AdamWConfig(), 1e-2, 0.1, 1),
                        static_cast<std::uint16_t*>(copy.mutable_data_ptr()));
    EXPECT_TRUE(at::equal(bits(copy), bits(w.to(at::kBFloat16)))) << n;
  }
}

}  // namespace
}  // namespace exfusion
