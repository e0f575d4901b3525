// The images that analyses look at: never trained on, in a fixed order, so that every checkpoint sees the
// same ones.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace exfusion {

class Dataset;
struct DataConfig;

struct HeldOutBatch {
  at::Tensor images;  // [n, channels, height, width] fp32
  at::Tensor labels;  // [n] int64
};

// The first `batches` batches of `size` images, fewer where the split ends; the last one may be smaller.
std::vector<HeldOutBatch> held_out_batches(const Dataset& split, const DataConfig& data, std::int64_t classes,
                                           std::int64_t batches, std::int64_t size);

}  // namespace exfusion
