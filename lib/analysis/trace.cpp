#include "analysis/trace.h"

#include <algorithm>
#include <fstream>
#include <iterator>

#include "core/error.h"

namespace exfusion::analysis {

Trace read_trace(const std::filesystem::path& file) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(file, ignored))
    throw FormatError(file.string() +
                      (std::filesystem::exists(file, ignored) ? ": not a regular file" : ": no such file"));
  if (std::filesystem::file_size(file, ignored) == 0) throw FormatError(file.string() + ": is empty");
  std::ifstream stream(file, std::ios::binary);
  char magic[8] = {};
  stream.read(magic, sizeof magic);
  constexpr char kHdf5[8] = {'\x89', 'H', 'D', 'F', '\r', '\n', '\x1a', '\n'};
  if (std::equal(std::begin(magic), std::end(magic), kHdf5)) return read_trace_hdf5(file);
  if (file.extension() == ".h5" || file.extension() == ".hdf5")
    throw FormatError(file.string() + ": no HDF5 file, though its name says so");
  return read_trace_csv(file);
}

std::string printable(std::string_view text) {
  std::string shown(text.substr(0, 64));
  for (char& one : shown) {
    if (static_cast<unsigned char>(one) < 0x20 || one == 0x7f) one = '?';
  }
  return shown;
}

std::vector<double> column_sums(const std::vector<double>& table, std::size_t columns) {
  std::vector<double> sums(columns, 0.0);
  for (std::size_t i = 0; i < table.size(); ++i) sums[i % columns] += table[i];
  return sums;
}

}  // namespace exfusion::analysis
