#include "nn/bf16_matmul.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "module_values.h"
#include "nn/kernel_arrays.h"

namespace exfusion {
namespace {

struct Sides {
  std::int64_t m, n, k;
};

at::Tensor bf16_values(at::IntArrayRef shape, std::uint64_t seed) {
  return random_values(shape, seed).to(at::kBFloat16);
}

at::Tensor filled(at::IntArrayRef shape, at::ScalarType type) {
  return at::full(shape, 1e30, type);  // whatever is not written shows
}

// a b^T + bias, a b' and a'^T b'' for x [m, k], weight [n, k], g [m, n].
std::array<at::Tensor, 3> products(const Sides& s, const at::Tensor& x, const at::Tensor& weight,
                                   const at::Tensor& bias, const at::Tensor& g) {
  std::array<at::Tensor, 3> found = {filled({s.m, s.n}, at::kBFloat16), filled({s.m, s.k}, at::kBFloat16),
                                     filled({s.n, s.k}, at::kFloat)};
  bf16_product_transposed(s.m, s.n, s.k, elements_of<Bfloat16>(x), elements_of<Bfloat16>(weight),
                          elements_of<Bfloat16>(bias), elements_of<Bfloat16>(found[0]));
  bf16_product(s.m, s.k, s.n, elements_of<Bfloat16>(g), elements_of<Bfloat16>(weight),
               elements_of<Bfloat16>(found[1]));
  bf16_transposed_product(s.n, s.k, s.m, elements_of<Bfloat16>(g), elements_of<Bfloat16>(x),
                          found[2].data_ptr<float>());
  return found;
}

class Bf16Matmul : public testing::TestWithParam<Sides> {
 protected:
  void SetUp() override {
    if (!has_bf16_matmul()) GTEST_SKIP() << "no AVX512-BF16, or AMX";
  }
};

// Each element is near the sum in double precision: within one rounding to bf16 (2^-8 of it), and within what
// sums in fp32 may lose of their terms' sizes.
TEST_P(Bf16Matmul, ProductsAreThoseOfDoublePrecisionForAnyNumberOfThreads) {
  const Sides s = GetParam();
  const at::Tensor x = bf16_values({s.m, s.k}, 1), weight = bf16_values({s.n, s.k}, 2),
                   bias = bf16_values({s.n}, 3), g = bf16_values({s.m, s.n}, 4);
  const at::Tensor x2 = x.to(at::kDouble), w2 = weight.to(at::kDouble), g2 = g.to(at::kDouble);
  const std::array<at::Tensor, 3> expected = {at::linear(x2, w2, bias.to(at::kDouble)), g2.mm(w2),
                                              g2.t().mm(x2)},
                                  sizes = {at::linear(x2.abs(), w2.abs(), bias.to(at::kDouble).abs()),
                                           g2.abs().mm(w2.abs()), g2.abs().t().mm(x2.abs())};
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const auto found = products(s, x, weight, bias, g);
  at::set_num_threads(3);
  const auto again = products(s, x, weight, bias, g);
  at::set_num_threads(threads);
  for (std::size_t i = 0; i < found.size(); ++i) {
    const double rounding = i < 2 ? 1.0 / 256 : 0.0;
    const at::Tensor allowed = expected[i].abs() * rounding + sizes[i] * 1e-6;
    EXPECT_TRUE(((found[i].to(at::kDouble) - expected[i]).abs() <= allowed).all().item<bool>()) << i;
    EXPECT_TRUE(found[i].equal(again[i])) << i;
  }
}

// Single rows, columns and pairs; edges of tiles, vectors and panels; panels longer than a cache; odd rows,
// and more of them than are multiplied at once.
INSTANTIATE_TEST_SUITE_P(Shapes, Bf16Matmul,
                         testing::Values(Sides{1, 2, 2}, Sides{8, 48, 32}, Sides{50, 38, 34},
                                         Sides{17, 66, 14}, Sides{61, 100, 96}, Sides{136, 64, 192},
                                         Sides{9, 530, 1030}, Sides{1613, 20, 70}, Sides{3203, 18, 6}));

TEST(Bf16MatmulInfinities, PassThroughWhereTheyBelong) {
  if (!has_bf16_matmul()) GTEST_SKIP() << "no AVX512-BF16, or AMX";
  const Sides s{9, 18, 20};
  const at::Tensor x = bf16_values({s.m, s.k}, 1), weight = bf16_values({s.n, s.k}, 2).abs(),
                   bias = bf16_values({s.n}, 3), g = bf16_values({s.m, s.n}, 4).abs();
  x[8][19] = INFINITY;
  g[3][17] = NAN;
  const auto found = products(s, x, weight, bias, g);
  EXPECT_TRUE(found[0][8].isinf().all().item<bool>());
  EXPECT_EQ(found[0].isfinite().logical_not().sum().item<std::int64_t>(), s.n);
  EXPECT_TRUE(found[1][3].isnan().all().item<bool>());
  EXPECT_EQ(found[1].isfinite().logical_not().sum().item<std::int64_t>(), s.k);
  EXPECT_EQ(found[2].isfinite().logical_not().sum().item<std::int64_t>(), s.n + s.k - 1);
}

}  // namespace
}  // namespace exfusion
