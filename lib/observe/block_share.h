// Which rank of a run looks at which block. All batches pass through the model on every rank, but what costs
// most, the sums and nulls of a block, is one rank's alone: no number depends on how many ranks there are.
#pragma once
#include <cstdint>

namespace exfusion {

inline constexpr std::int64_t kWholeModel =
    -1;  // in place of a block; the last rank's, which has no more blocks

struct BlockShare {
  std::int64_t rank = 0, world = 1;
  std::int64_t owner(std::int64_t block) const { return (block + world) % world; }
  bool has(std::int64_t block) const { return owner(block) == rank; }
};

}  // namespace exfusion
