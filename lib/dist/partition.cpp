#include "dist/partition.h"

#include <algorithm>

namespace exfusion {

std::vector<std::int64_t> cut_evenly(std::int64_t begin, std::int64_t end,
                                     std::span<const std::int64_t> boundaries, int world) {
  std::vector<std::int64_t> cuts = {begin};
  for (int rank = 1; rank < world; ++rank) {
    const std::int64_t ideal = begin + (end - begin) * rank / world;
    const auto above = std::lower_bound(boundaries.begin(), boundaries.end(), ideal);
    std::int64_t cut = above == boundaries.end() ? end : *above;
    if (above != boundaries.begin() && ideal - *(above - 1) < cut - ideal) cut = *(above - 1);
    cuts.push_back(std::clamp(cut, cuts.back(), end));
  }
  cuts.push_back(end);
  return cuts;
}

std::pair<std::int64_t, std::int64_t> owned_range(const ExchangeUnit& unit, int rank, std::int64_t begin,
                                                  std::int64_t end) {
  if (!unit.sharded) return {begin, end};
  const auto r = static_cast<std::size_t>(rank);
  const std::int64_t first = std::clamp(unit.cuts[r], begin, end);
  return {first, std::clamp(unit.cuts[r + 1], first, end)};
}

}  // namespace exfusion
