// Pairs of experts, where looking at all of them would take too long.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

namespace exfusion {

inline constexpr std::size_t kMostPairs = 10;  // all pairs of five experts

// The pairs i < j of n experts, neighbours first (0 1, 1 2, …, then 0 2, …): the first kMostPairs of them.
inline std::vector<std::pair<std::int64_t, std::int64_t>> expert_pairs(std::int64_t n) {
  std::vector<std::pair<std::int64_t, std::int64_t>> pairs;
  for (std::int64_t apart = 1; apart < n; ++apart) {
    for (std::int64_t i = 0; i + apart < n && pairs.size() < kMostPairs; ++i)
      pairs.emplace_back(i, i + apart);
  }
  return pairs;
}

}  // namespace exfusion
