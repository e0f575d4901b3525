// One extendible HDF5 data set per series: what the new and the old metrics file share. Internal to lib/io.
#pragma once
#include <hdf5.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "io/hdf5_handle.h"
#include "io/metrics_file.h"

namespace exfusion::series {

constexpr hsize_t kValueBytes = 8;  // int64 and float64
constexpr hsize_t kChunkBytes = 32768, kChunkRows = 1024;

using Handle = Hdf5Handle;

// HDF5 prints every error on stderr unless told not to; the setting belongs to the thread.
void silence_hdf5();
// The cause of the last error: the innermost entry of HDF5's stack, one line.
std::string hdf5_cause();
// Throw FileError "cannot `what` `path`: cause" for a failed call.
void check(herr_t status, const std::string& what, const std::string& path);
Handle checked(Handle handle, const std::string& what, const std::string& path);

struct Column {
  SeriesColumn series;
  Handle dataset;
  hsize_t values = 1;  // per row
  hsize_t chunk_rows() const {
    return std::clamp<hsize_t>(kChunkBytes / (values * kValueBytes), 1, kChunkRows);
  }
  hid_t memory_type() const { return series.integer ? H5T_NATIVE_INT64 : H5T_NATIVE_DOUBLE; }
  std::vector<hsize_t> extent(hsize_t rows) const {
    std::vector<hsize_t> sizes(series.shape.begin(), series.shape.end());
    sizes.insert(sizes.begin(), rows);
    return sizes;
  }
};

struct Group {
  std::string name;
  std::vector<Column> columns;  // the first is "step"
  hsize_t rows = 0;
  std::int64_t last_step = 0;
  std::string path_of(const Column& column) const { return "/" + name + "/" + column.series.name; }
};

// Adds the step column to each group and checks the shapes. Throws FormatError.
std::vector<Group> make_groups(std::vector<SeriesGroup> described, const std::string& path);
Handle access_properties();  // of a file: latest format, locks where the file system has them
// Creates the file with its groups and empty data sets, left open in `groups`.
Handle create_file(const std::string& path, std::vector<Group>& groups);
// Reads or writes `count` rows from row `first` on.
herr_t transfer(bool write, hid_t dataset, const Column& column, hsize_t first, hsize_t count, void* values);
// Writes `count` rows from row `first` on, which become the last ones. Throws FileError.
void write_rows(const Group& group, const Column& column, hsize_t first, hsize_t count, void* values,
                const std::string& path);
// Copies the rows with step <= `keep_through_step` of the file `old_path`, live, closed or left by a killed
// writer, to the empty groups of a new file. Throws FormatError when it is damaged or has other columns;
// FileError.
void carry_over(const std::string& old_path, std::vector<Group>& to, std::int64_t keep_through_step,
                const std::string& new_path);

}  // namespace exfusion::series
