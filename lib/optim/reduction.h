// Sums over parameters with a fixed order: blocks of fixed size, a fixed number of lanes in each (double
// precision), and a fixed tree over blocks. The bits do not depend on threads or instruction set. T: float,
// double.
//
// Element i of a block goes to lane i mod kReductionLanes, in the order of i. Lanes, then blocks, are added
// as a tree: x[j] += x[j + s] for s = half, quarter, …, 1 of the next power of two.
//
// Inner products first add, by the same tree and in T, the products that a whole group of elements has for
// one lane (lane_product): one conversion for eight of them lets the sum go at the speed of memory. Within
// 4 * 2^-24 of sum_i |x_i y_i|, for float. What is left of a block after its last whole group is added one by
// one.
#pragma once
#include <cstdint>
#include <span>

#include "core/host_device.h"

namespace exfusion {

inline constexpr std::int64_t kReductionBlock = 4096;
inline constexpr std::int64_t kReductionLanes = 16;
inline constexpr std::int64_t kReductionGroup = 8 * kReductionLanes;

// sum_i x_i^2 over n elements, each square in double: the norm of gradients that float could not square.
template <class T>
double sum_of_squares(const T* x, std::int64_t n);

// result[k] = <g, w[k]> over n elements, for all k in one walk over g. A product beyond float's range is
// infinite, as AdamW's own square of such a gradient would be.
template <class T>
void inner_products(const T* g, std::span<const T* const> w, std::int64_t n, std::span<double> result);

// What a group that begins at x and y has for its lane 0.
template <class T>
EXFUSION_HOST_DEVICE inline double lane_product(const T* x, const T* y) {
  constexpr std::int64_t row = kReductionLanes;
  const T even =
      (x[0] * y[0] + x[4 * row] * y[4 * row]) + (x[2 * row] * y[2 * row] + x[6 * row] * y[6 * row]);
  const T odd =
      (x[row] * y[row] + x[5 * row] * y[5 * row]) + (x[3 * row] * y[3 * row] + x[7 * row] * y[7 * row]);
  return static_cast<double>(even + odd);
}

// The two halves of inner_products, for walks that have the data in the cache anyway: the sum over one block
// (n <= kReductionBlock elements), and the tree over the sums of all blocks or lanes (n >= 1), which it
// overwrites.
template <class T>
double block_product(std::int64_t n, const T* x, const T* y);
double sum_blocks(double* sums, std::int64_t n);

// Elements that a walk over several arrays of n elements takes of one before it turns to the next, a multiple
// of kReductionBlock: the longer, the more rarely the hardware's prefetching starts anew, but all threads
// should have some.
inline constexpr std::int64_t kLongRun = 4 * kReductionBlock;
constexpr std::int64_t run_length(std::int64_t n) {
  return n >= 16 * kLongRun ? kLongRun : kReductionBlock;
}

// sums[b] = the sum of the squares of block b of n elements, each square in double.
template <class T>
void block_squares(const T* x, std::int64_t n, double* sums);

// Room for `n` such sums, owned by the calling thread; it only grows, so that a training step allocates
// nothing. Valid until the thread's next call of anything here.
std::span<double> block_sums(std::size_t n);

}  // namespace exfusion
