// How the ranks share a flat buffer: units that are exchanged one by one, each cut into one part per rank.
#pragma once
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace exfusion {

// Elements [begin, end) of the buffer.
struct ExchangeUnit {
  std::int64_t begin = 0, end = 0;
  std::vector<std::int64_t> cuts;  // [world + 1], from begin to end: rank r's part is [cuts[r], cuts[r + 1])
  bool sharded = false;            // a rank keeps the sums of its own part only; else everyone keeps all
};

// [world + 1] cuts of [begin, end) that lie on `boundaries` (ascending, `end` not among them), as even as
// these allow.
std::vector<std::int64_t> cut_evenly(std::int64_t begin, std::int64_t end,
                                     std::span<const std::int64_t> boundaries, int world);

// What of [begin, end), which lies in the unit, rank `rank` owns: its part of a sharded unit, all of another.
// Empty: first == second.
std::pair<std::int64_t, std::int64_t> owned_range(const ExchangeUnit& unit, int rank, std::int64_t begin,
                                                  std::int64_t end);

}  // namespace exfusion
