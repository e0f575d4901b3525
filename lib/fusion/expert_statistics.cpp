#include "fusion/expert_statistics.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace exfusion {
namespace {

// Both weight matrices of every expert as rows, [N, values] in double precision.
at::Tensor weight_rows(const FfnTensors& experts) {
  const std::int64_t n = experts[0].size(0);
  return at::cat({experts[0].reshape({n, -1}), experts[2].reshape({n, -1})}, 1).to(at::kDouble);
}

at::Tensor initial_rows(const ExpertBank& bank) {
  FfnTensors stacked;
  std::vector<FfnTensors> initial;
  for (std::int64_t k = 0; k < bank.experts(); ++k) initial.push_back(bank.initial_tensors(k));
  for (std::size_t t : {0u, 2u}) {
    std::vector<at::Tensor> parts;
    for (const FfnTensors& expert : initial) parts.push_back(expert[t]);
    stacked[t] = at::stack(parts);
  }
  return weight_rows(stacked);
}

double product_sum(const at::Tensor& x, const at::Tensor& y) {
  return (x * y).sum().item<double>();
}

double ratio(double numerator, double denominator) {
  return denominator > 0.0 ? numerator / denominator : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace

double sum_of_sizes(std::span<const float> a) {
  double sum = 0.0;
  for (const float x : a) sum += std::abs(static_cast<double>(x));
  return sum;
}

double weight_entropy(std::span<const float> a) {
  const double sum = sum_of_sizes(a);
  double entropy = 0.0;
  for (const float x : a) {
    const double p = std::abs(static_cast<double>(x)) / sum;
    if (p > 0.0) entropy -= p * std::log(p);
  }
  return entropy;
}

double wardrop_gap(std::span<const float> a, std::span<const double> prices) {
  double lambda = 0.0;
  for (std::size_t k = 0; k < a.size(); ++k) lambda += static_cast<double>(a[k]) * prices[k];
  return lambda - *std::min_element(prices.begin(), prices.end());
}

ExpertGeometry measure_geometry(const ExpertBank& bank, double decay) {
  const at::NoGradGuard no_grad;
  ExpertGeometry geometry;
  const at::Tensor now = weight_rows(bank.expert_tensors()).cpu(), start = initial_rows(bank);
  const std::vector<float>& a = bank.a();
  const at::Tensor weights = at::empty({bank.experts()}, at::kDouble);
  std::copy(a.begin(), a.end(), weights.mutable_data_ptr<double>());
  const at::Tensor fused = at::matmul(weights, now);
  const at::Tensor parts = at::matmul(now, fused) * weights / product_sum(fused, fused);
  geometry.shares.assign(parts.const_data_ptr<double>(), parts.const_data_ptr<double>() + parts.numel());

  const at::Tensor difference = now - now.mean(0, true), initial = start - start.mean(0, true);
  const double size = std::sqrt(product_sum(difference, difference)),
               before = std::sqrt(product_sum(initial, initial));
  geometry.difference_ratio = ratio(size, before);
  geometry.difference_cosine = ratio(product_sum(difference, initial), size * before);
  const at::Tensor learned = now - start * decay;
  const at::Tensor gram = at::matmul(learned, learned.t());
  const double trace = gram.trace().item<double>();
  geometry.update_participation = ratio(trace * trace, product_sum(gram, gram));
  return geometry;
}

}  // namespace exfusion
