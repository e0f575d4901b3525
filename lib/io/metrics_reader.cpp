#include "io/metrics_reader.h"

#include <algorithm>
#include <filesystem>
#include <functional>
#include <numeric>

#include "core/error.h"
#include "io/metrics_series.h"

namespace exfusion {
using namespace series;

namespace {
constexpr int kMostDimensions = 4;
constexpr hsize_t kMostNumbers = hsize_t{1} << 31;  // in a row
}  // namespace

struct MetricsReader::File {
  std::string path;
  hsize_t bytes = 0;
  Handle file;

  [[noreturn]] void refuse(const std::string& what) const { throw FormatError(path + ": " + what); }

  bool has(const std::string& name) const {
    for (std::size_t slash = name.find('/'); slash != std::string::npos; slash = name.find('/', slash + 1)) {
      if (H5Lexists(file, name.substr(0, slash).c_str(), H5P_DEFAULT) <= 0) return false;
    }
    return H5Lexists(file, name.c_str(), H5P_DEFAULT) > 0;
  }

  Handle open(const std::string& name) const {
    Handle dataset(H5Dopen2(file, name.c_str(), H5P_DEFAULT), H5Dclose);
    if (!dataset) refuse(name + " is no data set");
    return dataset;
  }

  // Rows, and the sizes of one.
  std::vector<hsize_t> extent(hid_t dataset, const std::string& name) const {
    const Handle space(H5Dget_space(dataset), H5Sclose);
    const int rank = H5Sget_simple_extent_ndims(space);
    if (rank < 1 || rank > kMostDimensions) refuse(name + " is no column of rows");
    std::vector<hsize_t> sizes(static_cast<std::size_t>(rank));
    H5Sget_simple_extent_dims(space, sizes.data(), nullptr);
    hsize_t numbers = 1;
    for (std::size_t d = 1; d < sizes.size(); ++d) {
      if (sizes[d] == 0 || sizes[d] > kMostNumbers / numbers) refuse(name + " has rows of no possible size");
      numbers *= sizes[d];
    }
    return sizes;
  }

  // The number of values, once they are known to fit into the file: they are allocated. width 0: no arrays.
  hsize_t values(hid_t dataset, const std::string& name, hsize_t width) const {
    const Handle type(H5Dget_type(dataset), H5Tclose);
    const std::vector<hsize_t> sizes = extent(dataset, name);
    const H5T_class_t kind = H5Tget_class(type);
    if ((kind != H5T_INTEGER && kind != H5T_FLOAT) || H5Tget_size(type) != kValueBytes ||
        (sizes.size() > 1) != (width != 0)) {
      refuse(name + " must hold " + (width == 0 ? "one int64 or float64" : "an array of numbers") +
             " per row");
    }
    const Handle properties(H5Dget_create_plist(dataset), H5Pclose);
    const hsize_t numbers = std::accumulate(sizes.begin() + 1, sizes.end(), hsize_t{1}, std::multiplies<>());
    if (width != 0 && numbers != width) {
      refuse(name + " has " + std::to_string(numbers) + " numbers per row, expected " +
             std::to_string(width));
    }
    hsize_t chunk[kMostDimensions] = {};
    const bool plain = H5Pget_layout(properties) == H5D_CHUNKED && H5Pget_nfilters(properties) == 0 &&
                       H5Pget_chunk(properties, kMostDimensions, chunk) == static_cast<int>(sizes.size());
    const bool wide = !std::equal(sizes.begin() + 1, sizes.end(), chunk + 1, std::greater_equal<>());
    if (!plain || chunk[0] > kChunkRows || wide) {
      refuse(name + " is not stored in plain chunks of at most " + std::to_string(kChunkRows) + " rows");
    }
    if (sizes[0] > bytes / kValueBytes / numbers + chunk[0]) {
      refuse(name + " claims " + std::to_string(sizes[0]) + " rows, more than the file can hold");
    }
    return sizes[0] * numbers;
  }
};

MetricsReader::MetricsReader(const std::string& path) : file_(std::make_unique<File>()) {
  silence_hdf5();
  file_->path = path;
  std::error_code error;
  file_->bytes = std::filesystem::file_size(path, error);
  if (error) throw FileError("cannot read " + path + ": " + error.message());
  const Handle properties = access_properties();
  H5Pset_metadata_read_attempts(properties, 1);  // a wrong checksum stays wrong
  // A file whose writer was killed only opens for SWMR; one of another kind only in the plain way.
  file_->file = {H5Fopen(path.c_str(), H5F_ACC_RDONLY | H5F_ACC_SWMR_READ, properties), H5Fclose};
  if (!file_->file) file_->file = {H5Fopen(path.c_str(), H5F_ACC_RDONLY, properties), H5Fclose};
  if (!file_->file) file_->refuse("not a readable HDF5 file (" + hdf5_cause() + ")");
}

MetricsReader::~MetricsReader() = default;

std::optional<std::vector<double>> MetricsReader::column(const std::string& name, std::uint64_t width) const {
  silence_hdf5();
  if (!file_->has(name)) return std::nullopt;
  const Handle dataset = file_->open(name);
  std::vector<double> values(file_->values(dataset, name, width));
  if (!values.empty() &&
      H5Dread(dataset, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) < 0) {
    file_->refuse(name + " cannot be read (" + hdf5_cause() + ")");
  }
  return values;
}

std::optional<std::vector<std::uint64_t>> MetricsReader::row_shape(const std::string& name) const {
  silence_hdf5();
  if (!file_->has(name)) return std::nullopt;
  const std::vector<hsize_t> sizes = file_->extent(file_->open(name), name);
  return std::vector<std::uint64_t>(sizes.begin() + 1, sizes.end());
}

}  // namespace exfusion
