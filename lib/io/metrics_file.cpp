#include "io/metrics_file.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "core/error.h"
#include "io/files.h"
#include "io/metrics_series.h"

namespace exfusion {
namespace fs = std::filesystem;
using namespace series;
namespace {

// The values of a row as they are stored, 8 bytes each.
std::vector<std::int64_t> stored_values(const Column& column, const std::vector<double>& values,
                                        const std::string& where) {
  if (values.size() != column.values) {
    throw FormatError(where + ": " + std::to_string(values.size()) + " values for a row, expected " +
                      std::to_string(column.values));
  }
  std::vector<std::int64_t> stored(values.size());
  if (!column.series.integer) {
    std::memcpy(stored.data(), values.data(), values.size() * kValueBytes);
    return stored;
  }
  constexpr double kExact = 9007199254740992.0;  // 2^53
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!(std::abs(values[i]) <= kExact) || values[i] != std::trunc(values[i])) {
      throw FormatError(where + ": " + std::to_string(values[i]) + " in a column of integers");
    }
    stored[i] = static_cast<std::int64_t>(values[i]);
  }
  return stored;
}

}  // namespace

struct MetricsFile::File {
  std::string path;
  Handle file;
  std::vector<Group> groups;  // closed before the file
};

MetricsFile::MetricsFile(const std::string& path, std::vector<SeriesGroup> groups,
                         std::int64_t keep_through_step)
    : file_(std::make_unique<File>()) {
  silence_hdf5();
  file_->path = path;
  file_->groups = make_groups(std::move(groups), path);
  const std::string temporary = path + ".tmp";
  try {
    const Handle created = create_file(temporary, file_->groups);
    if (keep_through_step >= 0 && fs::exists(fs::symlink_status(path))) {
      carry_over(path, file_->groups, keep_through_step, temporary);
    }
    for (Group& group : file_->groups) {
      for (Column& column : group.columns) column.dataset = Handle();
    }
    check(H5Fflush(created, H5F_SCOPE_LOCAL), "write", temporary);
  } catch (...) {
    std::error_code ignored;
    fs::remove(temporary, ignored);
    throw;
  }
  // Opened for SWMR before it gets its name: HDF5 locks a file while it opens it, and a reader who came first
  // would be in the way.
  file_->file =
      checked({H5Fopen(temporary.c_str(), H5F_ACC_RDWR | H5F_ACC_SWMR_WRITE, access_properties()), H5Fclose},
              "open", temporary);
  for (Group& group : file_->groups) {
    for (Column& column : group.columns) {
      const std::string name = group.path_of(column);
      column.dataset =
          checked({H5Dopen2(file_->file, name.c_str(), H5P_DEFAULT), H5Dclose}, "open " + name + " in", path);
    }
  }
  replace_file(temporary, path);
}

MetricsFile::~MetricsFile() {
  silence_hdf5();
}

void MetricsFile::append(const std::string& group_name, std::int64_t step, const MetricsRow& row) {
  silence_hdf5();
  const auto found = std::find_if(file_->groups.begin(), file_->groups.end(),
                                  [&](const Group& group) { return group.name == group_name; });
  if (found == file_->groups.end()) throw FormatError(file_->path + ": no group /" + group_name);
  Group& group = *found;
  if (step < group.last_step) {
    throw FormatError(file_->path + ": /" + group_name + ": step " + std::to_string(step) + " after step " +
                      std::to_string(group.last_step));
  }
  std::vector<std::vector<std::int64_t>> stored = {{step}};
  for (std::size_t i = 1; i < group.columns.size(); ++i) {
    const std::string where = file_->path + ": " + group.path_of(group.columns[i]);
    const auto values = row.find(group.columns[i].series.name);
    if (values == row.end()) throw FormatError(where + ": no value for step " + std::to_string(step));
    stored.push_back(stored_values(group.columns[i], values->second, where));
  }
  if (row.size() + 1 != group.columns.size()) {
    throw FormatError(file_->path + ": /" + group_name + ": a value for a column that it does not have");
  }

  // The step goes last: a row with a step is a whole row, also for a reader at this moment.
  for (std::size_t i = group.columns.size(); i-- > 0;) {
    Column& column = group.columns[i];
    write_rows(group, column, group.rows, 1, stored[i].data(), file_->path);
    check(H5Dflush(column.dataset), "flush " + group.path_of(column) + " in", file_->path);
  }
  group.rows += 1;
  group.last_step = step;
}

void MetricsFile::flush() {
  silence_hdf5();
  check(H5Fflush(file_->file, H5F_SCOPE_LOCAL), "flush", file_->path);
}

}  // namespace exfusion
