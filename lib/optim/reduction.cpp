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

constexpr std::int64_t kAhead = 2048;  // bytes: what is fetched before the processor asks for it

// Products of floats are exact in double, so even a contracted sum would have the same bits.
template <class T>
inline void add_squares(std::int64_t n, const T* __restrict x, double* __restrict lanes) {
  double sums[kReductionLanes] = {};
  std::int64_t i = 0;
  for (; i + kReductionLanes <= n; i += kReductionLanes) {
    for (std::int64_t j = 0; j < kReductionLanes; ++j) {
      const auto value = static_cast<double>(x[i + j]);
      sums[j] += value * value;
    }
  }
  for (std::int64_t j = 0; i + j < n; ++j)
    sums[j] += static_cast<double>(x[i + j]) * static_cast<double>(x[i + j]);
  for (std::int64_t j = 0; j < kReductionLanes; ++j) lanes[j] = sums[j];
}

template <class T>
inline void add_products(std::int64_t n, const T* __restrict x, const T* __restrict y,
                         double* __restrict lanes) {
  constexpr std::int64_t kLine = 64 / sizeof(T);
  double sums[kReductionLanes] = {};
  std::int64_t i = 0;
  for (; i + kReductionGroup <= n; i += kReductionGroup) {
    for (std::int64_t j = 0; j < kReductionGroup; j += kLine)
      __builtin_prefetch(y + i + j + kAhead / static_cast<std::int64_t>(sizeof(T)));
    for (std::int64_t j = 0; j < kReductionLanes; ++j) sums[j] += lane_product(x + i + j, y + i + j);
  }
  for (; i < n; ++i) sums[i % kReductionLanes] += static_cast<double>(x[i]) * static_cast<double>(y[i]);
  for (std::int64_t j = 0; j < kReductionLanes; ++j) lanes[j] = sums[j];
}

EXFUSION_INSTRUCTION_SETS
void square_lanes(std::int64_t n, const float* x, double* lanes) {
  add_squares(n, x, lanes);
}

EXFUSION_INSTRUCTION_SETS
void square_lanes(std::int64_t n, const double* x, double* lanes) {
  add_squares(n, x, lanes);
}

EXFUSION_INSTRUCTION_SETS
void product_lanes(std::int64_t n, const float* x, const float* y, double* lanes) {
  add_products(n, x, y, lanes);
}

EXFUSION_INSTRUCTION_SETS
void product_lanes(std::int64_t n, const double* x, const double* y, double* lanes) {
  add_products(n, x, y, lanes);
}

constexpr std::int64_t block_count(std::int64_t n) {
  return (n + kReductionBlock - 1) / kReductionBlock;
}

}  // namespace

template <class T>
double block_product(std::int64_t n, const T* x, const T* y) {
  double lanes[kReductionLanes];
  product_lanes(n, x, y, lanes);
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
  const auto blocks = static_cast<std::size_t>(block_count(n));
  const std::int64_t run = run_length(n);
  const std::span<double> sums = block_sums(w.size() * blocks);  // [w, blocks]
#pragma omp parallel for schedule(static) if (n >= kParallelElements)
  for (std::int64_t begin = 0; begin < n; begin += run) {
    for (std::size_t k = 0; k < w.size(); ++k) {
      for (std::int64_t i = begin; i < std::min(begin + run, n); i += kReductionBlock) {
        sums[k * blocks + static_cast<std::size_t>(i / kReductionBlock)] =
            block_product(std::min(kReductionBlock, n - i), g + i, w[k] + i);
      }
    }
  }
  for (std::size_t k = 0; k < w.size(); ++k)
    result[k] = blocks > 0 ? sum_blocks(&sums[k * blocks], block_count(n)) : 0.0;
}

template <class T>
void block_squares(const T* x, std::int64_t n, double* sums) {
#pragma omp parallel for schedule(static) if (n >= kParallelElements)
  for (std::int64_t i = 0; i < n; i += kReductionBlock) {
    double lanes[kReductionLanes];
    square_lanes(std::min(kReductionBlock, n - i), x + i, lanes);
    sums[i / kReductionBlock] = tree_sum(lanes, kReductionLanes);
  }
}

template <class T>
double sum_of_squares(const T* x, std::int64_t n) {
  if (n == 0) return 0.0;
  const std::span<double> sums = block_sums(static_cast<std::size_t>(block_count(n)));
  block_squares(x, n, sums.data());
  return tree_sum(sums.data(), block_count(n));
}

template double block_product(std::int64_t, const float*, const float*);
template double block_product(std::int64_t, const double*, const double*);
template void inner_products(const float*, std::span<const float* const>, std::int64_t, std::span<double>);
template void inner_products(const double*, std::span<const double* const>, std::int64_t, std::span<double>);
template void block_squares(const float*, std::int64_t, double*);
template void block_squares(const double*, std::int64_t, double*);
template double sum_of_squares(const float*, std::int64_t);
template double sum_of_squares(const double*, std::int64_t);

}  // namespace exfusion
