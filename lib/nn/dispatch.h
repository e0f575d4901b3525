// The way of tokens to experts and back: rows sorted by expert, so that each expert's matrix products run
// over one contiguous slice. Row copies only, no atomic sums: the same bits whatever the number of threads.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "core/random.h"

namespace exfusion {

// An order of n assignments (a token's choices of experts), those of expert 0 first.
struct Dispatch {
  at::Tensor order;                  // [n] int64: the assignment at each place
  at::Tensor inverse;                // [n] int64: the place of each assignment
  std::vector<std::int64_t> loads;   // per expert: assignments that asked for it
  std::vector<std::int64_t> counts;  // per expert: assignments it gets; those left over are last in the order
};

// Sorts assignments by expert, stably. `chosen` [n] int64, each in 0 .. experts-1. An expert with more than
// `capacity` (0: no limit) assignments keeps the first ones.
Dispatch dispatch_by_expert(const at::Tensor& chosen, std::int64_t experts, std::int64_t capacity);

// [n] int64: the expert of each of n assignments in a random uniform partition into parts equal up to one.
at::Tensor random_partition(std::int64_t n, std::int64_t experts, CounterRandom random);

// [n, columns]: row order[i] / choices of `rows` [n / choices, columns] at place i; `inverse` is the inverse
// permutation. Differentiable in rows.
at::Tensor take_rows(const at::Tensor& rows, const at::Tensor& order, const at::Tensor& inverse,
                     std::int64_t choices);

}  // namespace exfusion
