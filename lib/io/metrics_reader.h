// Reads columns of a metrics.h5: of a live run, a finished one, or one that was killed.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace exfusion {

class MetricsReader {
 public:
  // Throws FileError, or FormatError when it is no HDF5 file.
  explicit MetricsReader(const std::string& path);
  ~MetricsReader();
  MetricsReader(const MetricsReader&) = delete;
  MetricsReader& operator=(const MetricsReader&) = delete;
  // Every row of a column that has one int64 or float64 per row, as "eval/accuracy"; nullopt when the file
  // has no such column. Throws FormatError when it is of another kind or claims more than the file can hold.
  // With a width, a column of arrays of that many numbers each, row by row.
  std::optional<std::vector<double>> column(const std::string& name, std::uint64_t width = 0) const;
  // The sizes of a row of a column: {} for one number, {batches, experts} for a table; nullopt when the file
  // has no such column. Throws FormatError for sizes that no row has.
  std::optional<std::vector<std::uint64_t>> row_shape(const std::string& name) const;

 private:
  struct File;
  std::unique_ptr<File> file_;
};

}  // namespace exfusion
