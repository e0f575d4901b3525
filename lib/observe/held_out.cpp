#include "observe/held_out.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "data/loader.h"

namespace exfusion {

std::vector<HeldOutBatch> held_out_batches(const Dataset& split, const DataConfig& data, std::int64_t classes,
                                           std::int64_t batches, std::int64_t size) {
  std::vector<HeldOutBatch> result;
  for (std::int64_t first = 0; first < std::min(split.size(), batches * size); first += size) {
    const Batch batch = evaluation_batch(split, data, classes, first, std::min(size, split.size() - first));
    result.push_back({batch.images, batch.targets.argmax(1)});
  }
  return result;
}

}  // namespace exfusion
