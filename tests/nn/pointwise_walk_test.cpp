// The fused point-wise CUDA kernels, played thread by thread on the CPU, against PyTorch's operators in
// double precision.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <random>

#include "nn/bias_gelu_walk.h"
#include "nn/residual_norm_walk.h"
#include "support/play_grid.h"

namespace exfusion {
namespace {

at::Tensor numbers(at::IntArrayRef shape, std::uint64_t seed) {
  std::mt19937_64 bits(seed);
  std::normal_distribution<float> normal;
  at::Tensor x = at::empty(shape);
  for (std::int64_t i = 0; i < x.numel(); ++i) x.mutable_data_ptr<float>()[i] = normal(bits);
  return x;
}

float* data(const at::Tensor& x) {
  return x.mutable_data_ptr<float>();
}

at::Tensor wide(const at::Tensor& x, bool with_gradient = false) {
  return x.to(at::kDouble).requires_grad_(with_gradient);
}

void expect_close(const at::Tensor& found, const at::Tensor& expected, const char* what) {
  const double difference = (found.to(at::kDouble) - expected.detach()).abs().max().item<double>();
  EXPECT_LT(difference, 4e-6 * std::max(1.0, expected.abs().max().item<double>()))
      << what << " of " << found.sizes();
}

// The last row, or the last column, may not fill a pack, a warp or a block.
const std::pair<std::int64_t, std::int64_t> kShapes[] = {{1, 1},  {3, 5},     {7, 32},  {5, 33},
                                                         {9, 64}, {130, 100}, {65, 387}};

TEST(PointwiseWalk, OfBiasAndGeluIsPyTorchs) {
  for (const auto& [rows, columns] : kShapes) {
    const at::Tensor x = numbers({rows, columns}, 1) * 3, bias = numbers({columns}, 2),
                     dy = numbers({rows, columns}, 3);
    const at::Tensor y = at::full_like(x, NAN), dx = at::full_like(x, NAN);
    const BiasGelu forward{data(x), data(bias), data(y), columns};
    EXPECT_EQ(forward.fits(), columns % kVectorWidth == 0);
    play_walk(x.numel(), forward);
    play_walk(x.numel(), BiasGeluGradient{data(x), data(bias), data(dy), data(dx), columns});

    const at::Tensor input = wide(x, true), output = at::gelu(input + wide(bias));
    output.backward(wide(dy));
    expect_close(y, output, "gelu");
    expect_close(dx, input.grad(), "its gradient");
  }
}

// Lane by lane, row by row: pointwise.cu's loops with the shuffles written out.
template <class Lane>
float played_sum(const Lane& lane_sum) {
  float x[kRowLanes];
  for (int lane = 0; lane < kRowLanes; ++lane) x[lane] = lane_sum(lane);
  for (int step = kRowLanes / 2; step >= 1; step /= 2) {
    for (int lane = 0; lane < step; ++lane) x[lane] += x[lane + step];
  }
  return x[0];
}

void play(const ResidualNorm& work) {
  for (std::int64_t row = 0; row < work.rows; ++row) {
    const auto dim = static_cast<float>(work.columns);
    const float mean = played_sum([&](int lane) { return work.lane_sum(row, lane); }) / dim;
    const float squares = played_sum([&](int lane) { return work.lane_squares(row, lane, mean); });
    for (int lane = 0; lane < kRowLanes; ++lane)
      work.write(row, lane, mean, inverse_deviation(squares, dim, work.eps));
  }
}

void play(const ResidualNormGradient& work) {
  for (std::int64_t row = 0; row < work.rows; ++row) {
    const ResidualNormGradient::Sums sums = {
        played_sum([&](int lane) { return work.lane_sums(row, lane).s; }),
        played_sum([&](int lane) { return work.lane_sums(row, lane).s_normalised; })};
    for (int lane = 0; lane < kRowLanes; ++lane) work.write(row, lane, sums);
  }
}

void expect_norm(std::int64_t samples, std::int64_t tokens, std::int64_t columns, bool with_factor) {
  const std::int64_t rows = samples * tokens;
  const at::Tensor x = numbers({rows, columns}, 1) + 2, branch = numbers({rows, columns}, 2),
                   weight = numbers({columns}, 3), bias = numbers({columns}, 4),
                   dy = numbers({rows, columns}, 5), dsum = numbers({rows, columns}, 6),
                   factor = numbers({samples}, 7);
  const auto output = [&](at::IntArrayRef shape) { return at::full(shape, NAN); };
  const at::Tensor sum = output({rows, columns}), y = output({rows, columns}), mean = output({rows}),
                   inverse = output({rows}), dx = output({rows, columns}), dbranch = output({rows, columns});
  const float* factors = with_factor ? data(factor) : nullptr;
  play(ResidualNorm{data(x), data(branch), factors, tokens, data(weight), data(bias), data(sum), data(y),
                    data(mean), data(inverse), rows, columns, 1e-6f});
  play(ResidualNormGradient{data(sum), data(mean), data(inverse), data(weight), data(dy), data(dsum), factors,
                            tokens, data(dx), data(dbranch), rows, columns});
  const std::int64_t chunk_rows = 16, chunks = (rows + chunk_rows - 1) / chunk_rows;
  const at::Tensor dweight = output({chunks, columns}), dbias = output({chunks, columns});
  const NormParameterGradient parameters{data(sum),   data(mean), data(inverse), data(dy),  data(dweight),
                                         data(dbias), rows,       columns,       chunk_rows};
  play_grid<1>(parameters.elements(), parameters);

  const at::Tensor a = wide(x, true), b = wide(branch, true), w = wide(weight, true), c = wide(bias, true);
  const at::Tensor scale =
      with_factor ? wide(factor).repeat_interleave(tokens).view({rows, 1}) : at::ones({1}, at::kDouble);
  const at::Tensor added = a + scale * b, normed = at::layer_norm(added, {columns}, w, c, 1e-6);
  ((normed * wide(dy)).sum() + (added * wide(dsum)).sum()).backward();
  expect_close(sum, added, "sum");
  expect_close(y, normed, "layer norm");
  if (columns == 1)
    return;  // a row of one value has no deviation: its gradient is rounding error over sqrt(eps)
  expect_close(dx, a.grad(), "its gradient");
  expect_close(dbranch, b.grad(), "the branch's gradient");
  expect_close(dweight.sum(0), w.grad(), "the weight's gradient");
  expect_close(dbias.sum(0), c.grad(), "the bias's gradient");
}

TEST(PointwiseWalk, OfResidualAndLayerNormIsPyTorchs) {
  for (const auto& [rows, columns] : kShapes) {
    expect_norm(rows, 1, columns, false);
    expect_norm(rows, 3, columns, true);
  }
}

}  // namespace
}  // namespace exfusion
