#include "observe/fused_functions.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "analysis/imbalance.h"
#include "nn/ffn.h"

namespace exfusion {
namespace {

constexpr std::int64_t kBlock = 1 << 16;  // columns that are held in double precision at a time

at::Tensor as_tensor(std::span<const double> values) {
  return at::tensor(at::ArrayRef<double>(values.data(), values.size()), at::kDouble);
}

std::vector<double> numbers_of(const at::Tensor& tensor) {
  const at::Tensor values = tensor.contiguous();
  return {values.const_data_ptr<double>(), values.const_data_ptr<double>() + values.numel()};
}

at::Tensor product_cosines(const at::Tensor& products) {
  const at::Tensor norms = products.diagonal().sqrt();
  return products / norms.unsqueeze(0) / norms.unsqueeze(1);
}

double effective_number(std::span<const double> shares) {
  std::vector<double> sizes(shares.begin(), shares.end());
  for (double& size : sizes) size = std::abs(size);
  return analysis::exp_entropy(sizes);
}

}  // namespace

FunctionDifference compare_outputs(const at::Tensor& outputs, const at::Tensor& fused,
                                   std::span<const double> a) {
  const at::NoGradGuard no_grad;
  const at::Tensor wide = outputs.to(at::kDouble), y = fused.to(at::kDouble), weights = as_tensor(a);
  const at::Tensor mean = at::tensordot(weights, wide, {0}, {0});  // [tokens, dim]
  const at::Tensor spread = (wide - mean).square().flatten(1).sum(1);
  const double square = y.square().sum().item<double>();
  return {std::sqrt((weights * spread).sum().item<double>() / square),
          std::sqrt((y - mean).square().sum().item<double>() / square)};
}

FunctionDifference compare_functions(const FusedSet& set, const at::Tensor& x) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> outputs;
  for (std::int64_t k = 0; k < set.size(); ++k) outputs.push_back(ffn_output(x, set.expert(k)));
  return compare_outputs(at::stack(outputs), ffn_output(x, fused_tensors(set)), set.a);
}

FusedGeometry fused_geometry(std::span<const double> a, const at::Tensor& weights,
                             const at::Tensor& offsets) {
  const at::Tensor shares = as_tensor(a), with_fused = at::mv(weights, shares);
  const double square = at::dot(shares, with_fused).item<double>();
  FusedGeometry geometry;
  geometry.share = numbers_of(shares * with_fused / square);
  geometry.n_eff_a = effective_number(a);
  geometry.n_eff_share = effective_number(geometry.share);
  geometry.diversity_ratio = at::dot(shares, offsets.diagonal()).item<double>() / square;
  geometry.weight_cosine = numbers_of(product_cosines(weights));
  geometry.offset_cosine = numbers_of(product_cosines(offsets));
  return geometry;
}

FusedGeometry fused_geometry(const FusedSet& set) {
  const at::NoGradGuard no_grad;
  const std::int64_t n = set.size();
  at::Tensor weights = at::zeros({n, n}, at::kDouble), differences = weights.clone();
  const FfnTensors all = offsets(set);
  for (const std::size_t t : {0u, 2u}) {
    const at::Tensor w = set.experts[t].flatten(1), d = all[t].flatten(1);
    for (std::int64_t column = 0; column < w.size(1); column += kBlock) {
      const auto block = [&](const at::Tensor& x) {
        return x.slice(1, column, std::min(column + kBlock, w.size(1))).to(at::kDouble);
      };
      weights += at::mm(block(w), block(w).t());
      differences += at::mm(block(d), block(d).t());
    }
  }
  return fused_geometry(set.a, weights, differences);
}

FusedGeometry undefined_geometry(std::size_t experts) {
  const double none = std::nan("");
  const std::vector<double> row(experts, none), square(experts * experts, none);
  return {row, none, none, none, square, square};
}

}  // namespace exfusion
