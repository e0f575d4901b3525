// HDF5: train.h5 and test.h5, each with `images` uint8 [n, channels, height, width] and `labels` int64 [n],
// both contiguous: HDF5 1.10 reads out of bounds when a damaged compressed chunk inflates to less than the
// chunk's size, and photographs hardly compress anyway.
#include <fmt/format.h>
#include <hdf5.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "core/error.h"
#include "data/sources.h"
#include "io/hdf5_handle.h"

namespace exfusion {
namespace {

constexpr std::uint64_t kHdf5DeflateRatio =
    1032;  // the most that deflate, the densest of HDF5's filters, can compress

using Handle = Hdf5Handle;

struct Expected {
  const char *name, *type;  // type: for messages
  std::size_t bytes;        // of one element
  H5T_sign_t sign;
  int rank;
};
constexpr Expected kImages{"images", "uint8", 1, H5T_SGN_NONE, 4};
constexpr Expected kLabels{"labels", "int64", 8, H5T_SGN_2, 1};

[[noreturn]] void fail(const std::filesystem::path& file, const std::string& what) {
  throw DataError(file.string() + ": " + what);
}

// The sizes of data set `expected.name` after checking its type and rank.
std::vector<hsize_t> checked_sizes(const std::filesystem::path& file, hid_t dataset,
                                   const Expected& expected) {
  if (dataset < 0) fail(file, fmt::format("no data set `{}`, or a damaged one", expected.name));
  const Handle type(H5Dget_type(dataset), H5Tclose), space(H5Dget_space(dataset), H5Sclose);
  if (type < 0 || space < 0)
    fail(file, fmt::format("damaged: type or size of `{}` cannot be read", expected.name));
  if (H5Tget_class(type) != H5T_INTEGER || H5Tget_size(type) != expected.bytes ||
      H5Tget_sign(type) != expected.sign) {
    fail(file, fmt::format("`{}` must be of type {}", expected.name, expected.type));
  }
  const int rank = H5Sget_simple_extent_ndims(space);
  if (rank != expected.rank) {
    fail(file, fmt::format("`{}` has {} dimensions, expected {}", expected.name, rank, expected.rank));
  }
  std::vector<hsize_t> sizes(static_cast<std::size_t>(rank));
  if (H5Sget_simple_extent_dims(space, sizes.data(), nullptr) != rank) {
    fail(file, fmt::format("damaged: size of `{}` cannot be read", expected.name));
  }
  return sizes;
}

// Refuses what is not as it stands in this very file, before memory is allocated for it. `bytes`: what its
// sizes ask for.
void check_storage(const std::filesystem::path& file, hid_t dataset, const Expected& expected,
                   std::uint64_t bytes) {
  const Handle creation(H5Dget_create_plist(dataset), H5Pclose);
  if (creation < 0 || H5Pget_layout(creation) != H5D_CONTIGUOUS || H5Pget_external_count(creation) != 0) {
    fail(file, fmt::format("`{}` must be stored contiguously: no chunks, no compression, no external files",
                           expected.name));
  }
  const std::uint64_t stored =
      std::min<std::uint64_t>(H5Dget_storage_size(dataset), std::filesystem::file_size(file));
  if (stored < bytes) {
    fail(file, fmt::format("truncated: `{}` should have {} bytes, the file stores {}", expected.name, bytes,
                           stored));
  }
}

template <class T>
std::vector<T> read_values(const std::filesystem::path& file, hid_t dataset, hid_t memory_type,
                           std::uint64_t count, const Expected& expected) {
  std::vector<T> values(count);
  if (H5Dread(dataset, memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) < 0) {
    fail(file, fmt::format("damaged: `{}` cannot be read", expected.name));
  }
  return values;
}

std::shared_ptr<const Dataset> read_hdf5_split(const std::filesystem::path& file, const ImageShape& shape) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(file, ignored)) {
    fail(file,
         "not found; data.root names the folder with train.h5 and test.h5, docs/data.md shows how to write "
         "them");
  }
  // For good: the DataError says what matters, and of what HDF5 loses of a damaged file it complains at exit.
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  const Handle opened(H5Fopen(file.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), H5Fclose);
  if (opened < 0) fail(file, "no HDF5 file, or a damaged one");
  const Handle images(H5Dopen2(opened, kImages.name, H5P_DEFAULT), H5Dclose);
  const Handle labels(H5Dopen2(opened, kLabels.name, H5P_DEFAULT), H5Dclose);
  const auto sizes = checked_sizes(file, images, kImages);
  const auto label_sizes = checked_sizes(file, labels, kLabels);
  check_image_shape(file, sizes[1], sizes[2], sizes[3], shape);
  const std::uint64_t count = sizes[0],
                      each = sizes[1] * sizes[2] * sizes[3];  // the model's sides: no overflow
  if (count == 0) fail(file, "holds no images");
  if (label_sizes[0] != count) fail(file, fmt::format("{} images but {} labels", count, label_sizes[0]));
  if (count > std::filesystem::file_size(file))
    fail(file, fmt::format("truncated: too small for {} images", count));
  check_storage(file, images, kImages, count * each);
  check_storage(file, labels, kLabels, count * sizeof(std::int64_t));
  auto classes = read_values<std::int64_t>(file, labels, H5T_NATIVE_INT64, count, kLabels);
  check_labels(file, classes, shape.classes);
  auto pixels = read_values<std::uint8_t>(file, images, H5T_NATIVE_UINT8, count * each, kImages);
  return memory_dataset(std::move(pixels), std::move(classes), shape);
}

}  // namespace

Splits read_hdf5(const DataConfig& config, std::uint64_t /*seed*/, const ImageShape& shape) {
  if (config.root.empty()) throw DataError("data.root is missing: the folder with train.h5 and test.h5");
  const std::filesystem::path folder = config.root;
  return {read_hdf5_split(folder / "train.h5", shape), read_hdf5_split(folder / "test.h5", shape)};
}

}  // namespace exfusion
