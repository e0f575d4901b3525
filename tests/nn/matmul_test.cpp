#include "nn/matmul.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "module_values.h"

namespace exfusion {
namespace {

struct Product {
  std::int64_t rows, in, out;
  at::ScalarType type;
};

class Matmul : public testing::TestWithParam<Product> {};

// Largest difference over the largest number: what one rounding of the result explains.
double relative_difference(const at::Tensor& found, const at::Tensor& expected) {
  EXPECT_EQ(found.sizes(), expected.sizes());
  return largest_difference(found, expected) / expected.abs().max().item<double>();
}

TEST_P(Matmul, ProductsAreThoseOfDoublePrecision) {
  const auto [rows, in, out, type] = GetParam();
  const double bound = type == at::kBFloat16 ? 4e-3 : 2e-6;
  const at::Tensor x = random_values({rows, in}, 1).to(type), g = random_values({rows, out}, 2).to(type),
                   weight = random_values({out, in}, 3).to(type), bias = random_values({out}, 4).to(type);
  const at::Tensor x2 = x.to(at::kDouble), g2 = g.to(at::kDouble), w2 = weight.to(at::kDouble);
  EXPECT_LT(relative_difference(linear_product(x, weight, bias), at::linear(x2, w2, bias.to(at::kDouble))),
            bound);
  EXPECT_LT(relative_difference(linear_product(x, weight, {}), at::linear(x2, w2)), bound);
  EXPECT_LT(relative_difference(linear_input_gradient(g, weight), g2.mm(w2)), bound);
  EXPECT_LT(relative_difference(linear_weight_gradient(g, x), g2.t().mm(x2)), bound);
  EXPECT_LT(relative_difference(linear_bias_gradient(g), g2.sum(0)), 2e-6);
  EXPECT_EQ(linear_weight_gradient(g, x).scalar_type(), at::kFloat);
  EXPECT_EQ(linear_bias_gradient(g).scalar_type(), at::kFloat);
}

INSTANTIATE_TEST_SUITE_P(Sizes, Matmul,
                         testing::Values(Product{34, 64, 192, at::kFloat}, Product{34, 192, 64, at::kFloat},
                                         Product{7, 13, 5, at::kFloat}, Product{1, 1, 1, at::kFloat},
                                         Product{100, 384, 10, at::kFloat},
                                         Product{34, 64, 192, at::kBFloat16},
                                         Product{7, 13, 5, at::kBFloat16},
                                         Product{50, 96, 384, at::kBFloat16},
                                         Product{51, 49, 64, at::kBFloat16}));

}  // namespace
}  // namespace exfusion
