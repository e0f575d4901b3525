// A CSV of counts: `layer,domain,expert,count`, a line for each of them. Each domain becomes one batch.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <set>

#include "analysis/trace.h"
#include "core/error.h"
#include "io/files.h"

namespace exfusion::analysis {
namespace {

constexpr std::uint64_t kLargestFile = 64u << 20;
constexpr std::int64_t kMostCsvExperts = 65536, kMostCsvLayers = 100000;
constexpr std::size_t kMostCsvDomains = 65536, kMostCells = 1u << 26;

struct Line {
  std::string where;  // file:line
  std::string_view text;
};

std::int64_t whole_number(const Line& line, std::string_view text, const char* column, std::int64_t largest) {
  std::int64_t value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < 0 || value > largest)
    throw FormatError(fmt::format("{}: {} must be a whole number of 0 to {}, is '{}'", line.where, column,
                                  largest, printable(text)));
  return value;
}

std::vector<std::string_view> cells(const Line& line) {
  std::vector<std::string_view> found;
  std::string_view rest = line.text;
  for (std::size_t comma = rest.find(','); comma != rest.npos; comma = rest.find(',')) {
    found.push_back(rest.substr(0, comma));
    rest.remove_prefix(comma + 1);
  }
  found.push_back(rest);
  if (found.size() != 4 || line.text.find('"') != line.text.npos)
    throw FormatError(line.where + ": expected layer,domain,expert,count without quotes");
  return found;
}

// Counts by (layer, domain, expert).
using Cells = std::map<std::tuple<std::int64_t, std::size_t, std::int64_t>, std::int64_t>;

Cells read_cells(const std::filesystem::path& file, std::vector<std::string>& domains) {
  const std::string text = read_file(file, kLargestFile);
  std::map<std::string, std::size_t, std::less<>> numbers;
  Cells counts;
  std::size_t number = 0, begin = text.starts_with("\xEF\xBB\xBF") ? 3 : 0;  // a byte order mark
  while (begin < text.size()) {
    std::size_t end = std::min(text.find('\n', begin), text.size());
    Line line{fmt::format("{}:{}", file.string(), ++number),
              std::string_view(text).substr(begin, end - begin)};
    begin = end + 1;
    if (line.text.ends_with('\r')) line.text.remove_suffix(1);
    if (number == 1) {
      if (line.text != "layer,domain,expert,count")
        throw FormatError(fmt::format(
            "{}: neither an HDF5 file nor a CSV whose first line is layer,domain,expert,count; it is '{}'",
            line.where, printable(line.text)));
      continue;
    }
    if (line.text.empty() && text.find_first_not_of("\r\n", begin) == text.npos) break;  // the file's end
    if (line.text.empty()) throw FormatError(line.where + ": an empty line among the counts");
    const auto row = cells(line);
    const auto domain = numbers.try_emplace(std::string(row[1]), numbers.size());
    if (domain.second) {
      domains.emplace_back(row[1]);
      check_domain_name(domains.back(), line.where);
    }
    if (domains.size() > kMostCsvDomains) throw FormatError(line.where + ": more than 65536 domains");
    const auto key = std::tuple(whole_number(line, row[0], "layer", kMostCsvLayers), domain.first->second,
                                whole_number(line, row[2], "expert", kMostCsvExperts - 1));
    if (!counts.emplace(key, whole_number(line, row[3], "count", std::int64_t{1} << 53)).second)
      throw FormatError(line.where + ": this layer, domain and expert were there before");
  }
  return counts;
}

}  // namespace

Trace read_trace_csv(const std::filesystem::path& file) {
  Trace trace;
  const Cells counts = read_cells(file, trace.domains);
  if (counts.empty()) throw FormatError(file.string() + ": holds no counts");
  std::int64_t last_expert = 0;
  std::set<std::pair<std::int64_t, std::size_t>> rows;  // (layer, domain)
  for (const auto& [key, count] : counts) {
    last_expert = std::max(last_expert, std::get<2>(key));
    rows.emplace(std::get<0>(key), std::get<1>(key));
  }
  trace.experts = static_cast<std::size_t>(last_expert) + 1;
  if (trace.experts < 2)
    throw FormatError(file.string() + ": holds a single expert, number 0; there must be 2 or more");
  if (rows.size() > kMostCells / trace.experts)
    throw FormatError(fmt::format("{}: {} layers and domains of {} experts are too many", file.string(),
                                  rows.size(), trace.experts));
  for (const auto& [layer, domain] : rows) {
    if (trace.layers.empty() || trace.layers.back().layer != layer) trace.layers.emplace_back().layer = layer;
    trace.layers.back().domain.push_back(static_cast<std::int32_t>(domain));
    trace.layers.back().count.resize(trace.layers.back().domain.size() * trace.experts);
  }
  std::size_t at = 0, row = 0;  // counts come in the order of the rows
  for (const auto& [key, count] : counts) {
    const auto& [number, domain, expert] = key;
    while (trace.layers[at].layer != number) {
      ++at;
      row = 0;
    }
    TraceLayer& layer = trace.layers[at];
    while (layer.domain[row] != static_cast<std::int32_t>(domain)) ++row;
    layer.count[row * trace.experts + static_cast<std::size_t>(expert)] = static_cast<double>(count);
  }
  for (const TraceLayer& layer : trace.layers) {
    double total = 0.0;
    for (const double count : layer.count) total += count;
    if (!(total > 0.0))
      throw FormatError(fmt::format("{}: layer {} has no counts but 0", file.string(), layer.layer));
  }
  return trace;
}

}  // namespace exfusion::analysis
