// The assignment problem.
#pragma once
#include <cstddef>
#include <span>
#include <vector>

namespace exfusion::analysis {

// The permutation p of 0 .. n-1 with the largest sum over rows u of gain[u n + p[u]], in O(n^3) (the
// Hungarian method with shortest augmenting paths: Kuhn 1955; Jonker and Volgenant 1987). Throws
// std::invalid_argument where `gain` is not n x n finite numbers.
std::vector<std::size_t> best_assignment(std::span<const double> gain, std::size_t n);

}  // namespace exfusion::analysis
