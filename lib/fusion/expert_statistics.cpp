#include "fusion/expert_statistics.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace exfusion {
namespace {

constexpr std::int64_t kBlock = 1 << 16;  // columns that are held in double precision at a time

// One weight matrix of every expert at the start, as rows [N, values].
at::Tensor initial_rows(const ExpertBank& bank, std::size_t t) {
  const at::Tensor& now = bank.expert_tensors()[t];
  at::Tensor rows = at::empty({bank.experts(), now[0].numel()}, at::kFloat);
  for (std::int64_t k = 0; k < bank.experts(); ++k)
    rows.select(0, k).copy_(bank.shard().part(t, bank.initial_tensors(k)[t]).reshape(-1));
  return rows;
}

// Everything that a rank has summed over its own columns, over all.
void sum_over_shards(const BankShard& shard, const std::vector<at::Tensor>& tensors,
                     const std::vector<double*>& numbers) {
  std::vector<double> all;
  for (const at::Tensor& tensor : tensors) {
    const auto* values = tensor.const_data_ptr<double>();
    all.insert(all.end(), values, values + tensor.numel());
  }
  for (const double* number : numbers) all.push_back(*number);
  shard.sum(all);
  const double* next = all.data();
  for (const at::Tensor& tensor : tensors) {
    std::copy_n(next, tensor.numel(), tensor.mutable_data_ptr<double>());
    next += tensor.numel();
  }
  for (double* number : numbers) *number = *next++;
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
  const std::int64_t n = bank.experts();
  const at::Tensor weights = at::tensor(bank.a()).to(at::kDouble);
  at::Tensor parts = at::zeros({n}, at::kDouble), gram = at::zeros({n, n}, at::kDouble);
  double fused_square = 0.0, now_square = 0.0, start_square = 0.0, product = 0.0;
  // Block by block: everything is a sum over columns, and all of it at once would be several times the
  // experts' memory.
  for (const std::size_t t : {0u, 2u}) {
    const at::Tensor all = bank.expert_tensors()[t].reshape({n, -1}).cpu(), initial = initial_rows(bank, t);
    for (std::int64_t column = 0; column < all.size(1); column += kBlock) {
      const std::int64_t size = std::min(kBlock, all.size(1) - column);
      const at::Tensor now = all.narrow(1, column, size).to(at::kDouble),
                       start = initial.narrow(1, column, size).to(at::kDouble);
      const at::Tensor fused = at::matmul(weights, now);
      parts += at::matmul(now, fused);
      fused_square += product_sum(fused, fused);
      const at::Tensor difference = now - now.mean(0, true), before = start - start.mean(0, true);
      now_square += product_sum(difference, difference);
      start_square += product_sum(before, before);
      product += product_sum(difference, before);
      const at::Tensor learned = now - start * decay;
      gram += at::matmul(learned, learned.t());
    }
  }
  sum_over_shards(bank.shard(), {parts, gram}, {&fused_square, &now_square, &start_square, &product});
  ExpertGeometry geometry;
  parts = parts * weights / fused_square;
  geometry.shares.assign(parts.const_data_ptr<double>(), parts.const_data_ptr<double>() + n);
  geometry.difference_ratio = ratio(std::sqrt(now_square), std::sqrt(start_square));
  geometry.difference_cosine = ratio(product, std::sqrt(now_square) * std::sqrt(start_square));
  const double trace = gram.trace().item<double>();
  geometry.update_participation = ratio(trace * trace, product_sum(gram, gram));
  return geometry;
}

}  // namespace exfusion
