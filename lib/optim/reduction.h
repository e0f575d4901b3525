// Sums over parameters with a fixed order: blocks of fixed size, a fixed number of lanes in each (double
// precision), and a fixed tree over blocks. The bits do not depend on threads or instruction set. T: float,
// double.
//
// Element i of a block goes to lane i mod kReductionLanes, in the order of i. Lanes, then blocks, are added
// as a tree: x[j] += x[j + s] for s = half, quarter, …, 1 of the next power of two.
#pragma once
#include <cstdint>
#include <span>

namespace exfusion {

inline constexpr std::int64_t kReductionBlock = 4096;
inline constexpr std::int64_t kReductionLanes = 16;

// sum_i x_i^2 over n elements.
template <class T>
double sum_of_squares(const T* x, std::int64_t n);

// result[k] = <g, w[k]> over n elements, for all k in one walk over g.
template <class T>
void inner_products(const T* g, std::span<const T* const> w, std::int64_t n, std::span<double> result);

// The two halves of inner_products, for walks that have the data in the cache anyway: the sum over one block
// (n <= kReductionBlock elements), and the tree over the sums of all blocks (n >= 1), which it overwrites.
template <class T>
double block_product(std::int64_t n, const T* x, const T* y);
double sum_blocks(double* sums, std::int64_t n);

// Room for `n` such sums, owned by the calling thread; it only grows, so that a training step allocates
// nothing. Valid until the thread's next call of anything here.
std::span<double> block_sums(std::size_t n);

}  // namespace exfusion
