// metrics.h5: one extendible data set per series, written in SWMR mode, so that h5py reads it
// (libver="latest", swmr=True) while the run lives and after it was killed.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace exfusion {

struct SeriesColumn {
  std::string name;                 // "loss"
  bool integer = false;             // int64 instead of float64
  std::vector<std::int64_t> shape;  // {} : one number per row; {4, 8}: [rows, 4, 8]
};
struct SeriesGroup {
  std::string name;  // "train", or "analysis/fused/layer_000"; its first column is "step" (int64), which the file adds itself
  std::vector<SeriesColumn> columns;
};
using MetricsRow = std::map<std::string, std::vector<double>>;  // column -> values (product(shape) of them)

class MetricsFile {
 public:
  // Creates `path`. If it exists, its rows with step <= `keep_through_step` are carried over into a new file
  // first (works on a file whose writer was killed); pass -1 to start empty. Throws FileError, FormatError.
  MetricsFile(const std::string& path, std::vector<SeriesGroup> groups, std::int64_t keep_through_step);
  ~MetricsFile();
  MetricsFile(const MetricsFile&) = delete;
  MetricsFile& operator=(const MetricsFile&) = delete;
  // Appends one row to a group: every column must be given with the right count.
  void append(const std::string& group, std::int64_t step, const MetricsRow& row);
  void flush();

 private:
  struct File;
  std::unique_ptr<File> file_;
};

}  // namespace exfusion
