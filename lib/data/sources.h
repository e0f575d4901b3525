// Where data sets come from: one function per kind of source, behind the table in dataset.cpp.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

#include "data/dataset.h"

namespace exfusion {

struct Splits {
  std::shared_ptr<const Dataset> train, test;
};

Splits read_fashion_mnist(const DataConfig& config, std::uint64_t seed, const ImageShape& shape);
Splits read_idx(const DataConfig& config, std::uint64_t seed, const ImageShape& shape);
Splits read_hdf5(const DataConfig& config, std::uint64_t seed, const ImageShape& shape);
Splits make_synthetic(const DataConfig& config, std::uint64_t seed, const ImageShape& shape);

// Pixels uint8 [labels.size(), channels, size, size] of `shape`.
std::shared_ptr<const Dataset> memory_dataset(std::vector<std::uint8_t> pixels,
                                              std::vector<std::int64_t> labels, const ImageShape& shape);

// What every source checks of a file, the first before it allocates anything. Throw DataError naming `file`.
void check_image_shape(const std::filesystem::path& file, std::uint64_t channels, std::uint64_t height,
                       std::uint64_t width, const ImageShape& shape);
void check_labels(const std::filesystem::path& file, const std::vector<std::int64_t>& labels,
                  std::int64_t classes);

}  // namespace exfusion
