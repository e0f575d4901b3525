#include "io/metrics_series.h"

#include <cmath>

#include "core/error.h"

namespace exfusion::series {

void silence_hdf5() {
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

std::string hdf5_cause() {
  std::string text = "unknown cause";
  const auto take = [](unsigned depth, const H5E_error2_t* error, void* result) -> herr_t {
    if (depth == 0 && error->desc != nullptr) *static_cast<std::string*>(result) = error->desc;
    return 0;
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take, &text);
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

void check(herr_t status, const std::string& what, const std::string& path) {
  if (status < 0) throw FileError("cannot " + what + " " + path + ": " + hdf5_cause());
}

Handle checked(Handle handle, const std::string& what, const std::string& path) {
  check(handle ? 0 : -1, what, path);
  return handle;
}

std::vector<Group> make_groups(std::vector<SeriesGroup> described, const std::string& path) {
  std::vector<Group> groups;
  for (SeriesGroup& series : described) {
    series.columns.insert(series.columns.begin(), SeriesColumn{"step", true, {}});
    Group& group = groups.emplace_back();
    group.name = series.name;
    for (SeriesColumn& one : series.columns) {
      Column& column = group.columns.emplace_back();
      column.series = std::move(one);
      for (const std::int64_t size : column.series.shape) {
        if (size < 1)
          throw FormatError(path + ": " + group.path_of(column) + ": every dimension must be at least 1");
        column.values *= static_cast<hsize_t>(size);
      }
    }
  }
  return groups;
}

Handle access_properties() {
  Handle properties(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5Pset_libver_bounds(properties, H5F_LIBVER_LATEST, H5F_LIBVER_LATEST);
  H5Pset_file_locking(properties, true, true);  // some network file systems have no locks
  return properties;
}

namespace {

void create_dataset(hid_t file, Group& group, Column& column, const std::string& path) {
  const std::string what = "create " + group.path_of(column) + " in";
  const std::vector<hsize_t> empty = column.extent(0), chunk = column.extent(column.chunk_rows());
  std::vector<hsize_t> limit = empty;
  limit[0] = H5S_UNLIMITED;
  const int rank = static_cast<int>(empty.size());
  const Handle space = checked({H5Screate_simple(rank, empty.data(), limit.data()), H5Sclose}, what, path);
  const Handle properties = checked({H5Pcreate(H5P_DATASET_CREATE), H5Pclose}, what, path);
  check(H5Pset_chunk(properties, rank, chunk.data()), what, path);
  // Rows that were announced but never written show themselves.
  const std::int64_t no_step = -1;
  const double no_value = std::nan("");
  const void* fill = column.series.integer ? static_cast<const void*>(&no_step) : &no_value;
  check(H5Pset_fill_value(properties, column.memory_type(), fill), what, path);
  const hid_t stored = column.series.integer ? H5T_STD_I64LE : H5T_IEEE_F64LE;
  column.dataset = checked(
      {H5Dcreate2(file, group.path_of(column).c_str(), stored, space, H5P_DEFAULT, properties, H5P_DEFAULT),
       H5Dclose},
      what, path);
}

}  // namespace

Handle create_file(const std::string& path, std::vector<Group>& groups) {
  Handle file = checked({H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access_properties()), H5Fclose},
                        "create", path);
  const Handle nested(H5Pcreate(H5P_LINK_CREATE), H5Pclose);
  H5Pset_create_intermediate_group(nested, 1);
  for (Group& group : groups) {
    checked({H5Gcreate2(file, group.name.c_str(), nested, H5P_DEFAULT, H5P_DEFAULT), H5Gclose},
            "create the group /" + group.name + " in", path);
    for (Column& column : group.columns) create_dataset(file, group, column, path);
  }
  return file;
}

herr_t transfer(bool write, hid_t dataset, const Column& column, hsize_t first, hsize_t count, void* values) {
  std::vector<hsize_t> start(column.series.shape.size() + 1, 0);
  start[0] = first;
  const std::vector<hsize_t> block = column.extent(count);
  const Handle space(H5Dget_space(dataset), H5Sclose);
  const Handle memory(H5Screate_simple(static_cast<int>(block.size()), block.data(), nullptr), H5Sclose);
  if (H5Sselect_hyperslab(space, H5S_SELECT_SET, start.data(), nullptr, block.data(), nullptr) < 0) return -1;
  const hid_t type = column.memory_type();
  return write ? H5Dwrite(dataset, type, memory, space, H5P_DEFAULT, values)
               : H5Dread(dataset, type, memory, space, H5P_DEFAULT, values);
}

void write_rows(const Group& group, const Column& column, hsize_t first, hsize_t count, void* values,
                const std::string& path) {
  const std::string what = "append to " + group.path_of(column) + " in";
  check(H5Dset_extent(column.dataset, column.extent(first + count).data()), what, path);
  check(transfer(true, column.dataset, column, first, count, values), what, path);
}

}  // namespace exfusion::series
