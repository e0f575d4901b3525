#include "optim/reduction.h"

#include <algorithm>
#include <bit>
#include <vector>

#include "core/instruction_sets.h"

namespace exfusion {
namespace {

constexpr std::int64_t kParallelElements = 32768;  // below, starting threads costs more than it saves

// Adds n numbers, n >= 1, as a tree whose shape only n decides.
double tree_sum(double* x, std::int64_t n) {
  for (auto half = static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(n)) / 2); half >= 1;
       half /= 2) {
    for (std::int64_t j = 0; j + half < n; ++j) x[j] += x[j + half];
    n = std::min(n, half);
  }
  return x[0];
}

// Products of floats are exact in double, so even a contracted sum would have the same bits.
template <class T>
inline void add_products(std::int64_t n, const T* __restrict x, const T* __restrict y,
                         double* __restrict lanes) {
  double sums[kReductionLanes] = {};
  std::int64_t i = 0;
  for (; i + kReductionLanes <= n; i += kReductionLanes) {
    for (std::int64_t j = 0; j < kReductionLanes; ++j) {
      sums[j] += static_cast<double>(x[i + j]) * static_cast<double>(y[i + j]);
    }
  }
  for (std::int64_t j = 0; i + j < n; ++j)
    sums[j] += static_cast<double>(x[i + j]) * static_cast<double>(y[i + j]);
  for (std::int64_t j = 0; j < kReductionLanes; ++j) lanes[j] = sums[j];
}

EXFUSION_INSTRUCTION_SETS
void block_lanes(std::int64_t n, const float* x, const float* y, double* lanes) {
  add_products(n, x, y, lanes);
}

EXFUSION_INSTRUCTION_SETS
void block_lanes(std::int64_t n, const double* x, const double* y, double* lanes) {
  add_products(n, x, y, lanes);
}

}  // namespace

template <class T>
double block_product(std::int64_t n, const T* x, const T* y) {
  double lanes[kReductionLanes];
  block_lanes(n, x, y, lanes);
  return tree_sum(lanes, kReductionLanes);
}

double sum_blocks(double* sums, std::int64_t n) {
  return tree_sum(sums, n);
}

std::span<double> block_sums(std::size_t n) {
  thread_local std::vector<double> sums;
  if (sums.size() < n) sums.resize(n);
  return std::span(sums).first(n);
}

template <class T>
void inner_products(const T* g, std::span<const T* const> w, std::int64_t n, std::span<double> result) {
  const std::int64_t blocks = (n + kReductionBlock - 1) / kReductionBlock;
  if (blocks == 0) {
    std::fill(result.begin(), result.end(), 0.0);
    return;
  }
  const std::span<double> sums = block_sums(w.size() * static_cast<std::size_t>(blocks));  // [w, blocks]
#pragma omp parallel for schedule(static) if (n >= kParallelElements)
  for (std::int64_t b = 0; b < blocks; ++b) {
    const std::int64_t begin = b * kReductionBlock, size = std::min(kReductionBlock, n - begin);
    for (std::size_t k = 0; k < w.size(); ++k) {
      sums[k * static_cast<std::size_t>(blocks) + static_cast<std::size_t>(b)] =
          block_product(size, g + begin, w[k] + begin);
    }
  }
  for (std::size_t k = 0; k < w.size(); ++k)
    result[k] = sum_blocks(&sums[k * static_cast<std::size_t>(blocks)], blocks);
}

template <class T>
double sum_of_squares(const T* x, std::int64_t n) {
  double result = 0.0;
  inner_products<T>(x, std::span(&x, 1), n, std::span(&result, 1));
  return result;
}

template double block_product(std::int64_t, const float*, const float*);
template double block_product(std::int64_t, const double*, const double*);
template void inner_products(const float*, std::span<const float* const>, std::int64_t, std::span<double>);
template void inner_products(const double*, std::span<const double* const>, std::int64_t, std::span<double>);
template double sum_of_squares(const float*, std::int64_t);
template double sum_of_squares(const double*, std::int64_t);

}  // namespace exfusion
