#include <filesystem>

#include "core/error.h"
#include "io/metrics_series.h"

namespace exfusion::series {
namespace {

constexpr hsize_t kMaxChunkBytes = 1 << 20;

// An older metrics file, whose bytes are trusted no more than any others.
class OldFile {
 public:
  explicit OldFile(const std::string& path) : path_(path) {
    std::error_code error;
    bytes_ = std::filesystem::file_size(path, error);
    if (error) throw FileError("cannot read " + path + ": " + error.message());
    // A file whose writer was killed only opens in this way; one of another kind only in the plain way.
    const Handle properties = access_properties();
    // Without a live writer a wrong checksum stays wrong: HDF5 would try 100 times, with ever longer pauses.
    H5Pset_metadata_read_attempts(properties, 1);
    file_ = {H5Fopen(path.c_str(), H5F_ACC_RDONLY | H5F_ACC_SWMR_READ, properties), H5Fclose};
    if (!file_) file_ = {H5Fopen(path.c_str(), H5F_ACC_RDONLY, properties), H5Fclose};
    if (!file_) refuse("not a readable HDF5 file (" + hdf5_cause() + ")");
  }

  // Appends the rows with step <= `keep_through_step` to the empty group of a new file.
  void carry_over(Group& to, std::int64_t keep_through_step, const std::string& new_path) const {
    std::vector<Handle> datasets;
    hsize_t rows = H5S_UNLIMITED;
    for (const Column& column : to.columns) {
      hsize_t own_rows = 0;
      datasets.push_back(open_dataset(to, column, own_rows));
      rows = std::min(rows, own_rows);  // the last append may be torn
    }
    rows = kept_rows(to, datasets[0], rows, keep_through_step);
    for (std::size_t i = 0; i < to.columns.size(); ++i) {
      Column& column = to.columns[i];
      std::vector<std::int64_t> block(column.chunk_rows() * column.values);  // 8 bytes of either kind
      for (hsize_t first = 0; first < rows; first += column.chunk_rows()) {
        const hsize_t count = std::min(column.chunk_rows(), rows - first);
        read(to, datasets[i], column, first, count, block.data());
        write_rows(to, column, first, count, block.data(), new_path);
      }
    }
    to.rows = rows;
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    throw FormatError(path_ + ": " + what + "; move the file away to go on without its rows");
  }

  void read(const Group& group, hid_t dataset, const Column& column, hsize_t first, hsize_t count,
            void* to) const {
    if (transfer(false, dataset, column, first, count, to) < 0) {
      refuse(group.path_of(column) + " cannot be read (" + hdf5_cause() + ")");
    }
  }

  Handle open_dataset(const Group& group, const Column& column, hsize_t& rows) const {
    const std::string name = group.path_of(column);
    Handle dataset(H5Dopen2(file_, name.c_str(), H5P_DEFAULT), H5Dclose);
    if (!dataset) refuse("no data set " + name);
    const Handle type(H5Dget_type(dataset), H5Tclose), space(H5Dget_space(dataset), H5Sclose);
    const H5T_class_t expected = column.series.integer ? H5T_INTEGER : H5T_FLOAT;
    if (H5Tget_class(type) != expected || H5Tget_size(type) != kValueBytes) {
      refuse(name + " must hold " + (column.series.integer ? "int64" : "float64"));
    }
    std::vector<hsize_t> sizes = column.extent(0);
    const int rank = H5Sget_simple_extent_ndims(space);
    if (rank == static_cast<int>(sizes.size())) H5Sget_simple_extent_dims(space, sizes.data(), nullptr);
    rows = sizes[0];
    if (rank != static_cast<int>(sizes.size()) || sizes != column.extent(rows)) {
      refuse(name + " has another shape than this run's");
    }
    check_storage(dataset, column, name, rows);
    return dataset;
  }

  // Neither rows nor chunks may claim more than the file can hold: both are allocated or walked through.
  void check_storage(hid_t dataset, const Column& column, const std::string& name, hsize_t rows) const {
    const Handle properties(H5Dget_create_plist(dataset), H5Pclose);
    std::vector<hsize_t> chunk = column.extent(0);
    const int rank = static_cast<int>(chunk.size());
    if (H5Pget_layout(properties) != H5D_CHUNKED || H5Pget_nfilters(properties) != 0 ||
        H5Pget_chunk(properties, rank, chunk.data()) != rank) {
      refuse(name + " is not stored in plain chunks");
    }
    const hsize_t row_bytes = column.values * kValueBytes;
    const hsize_t largest = std::max(kMaxChunkBytes, row_bytes);
    hsize_t chunk_bytes = kValueBytes;
    for (const hsize_t size : chunk) {
      if (size > largest / chunk_bytes) refuse(name + " has chunks that are too large");
      chunk_bytes *= size;
    }
    if (rows > (bytes_ + chunk_bytes) / row_bytes) {
      refuse(name + " claims " + std::to_string(rows) + " rows, more than the file can hold");
    }
  }

  // Steps never go down, except to the fill value of a row that was announced and not written.
  hsize_t kept_rows(Group& group, hid_t dataset, hsize_t rows, std::int64_t keep_through_step) const {
    std::vector<std::int64_t> steps(kChunkRows);
    for (hsize_t first = 0; first < rows; first += kChunkRows) {
      const hsize_t count = std::min(kChunkRows, rows - first);
      read(group, dataset, group.columns[0], first, count, steps.data());
      for (hsize_t i = 0; i < count; ++i) {
        if (steps[i] < group.last_step || steps[i] > keep_through_step) return first + i;
        group.last_step = steps[i];
      }
    }
    return rows;
  }

  std::string path_;
  hsize_t bytes_ = 0;
  Handle file_;
};

}  // namespace

void carry_over(const std::string& old_path, std::vector<Group>& to, std::int64_t keep_through_step,
                const std::string& new_path) {
  const OldFile old(old_path);
  for (Group& group : to) old.carry_over(group, keep_through_step, new_path);
}

}  // namespace exfusion::series
