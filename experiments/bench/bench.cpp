#include "bench.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <thread>

#include "core/error.h"
#include "io/files.h"
#include "train/versions.h"

namespace exfusion {
namespace {

namespace po = boost::program_options;

// The value below which the part `p` of the sorted values lies, linear in between.
double quantile(const std::vector<double>& sorted, double p) {
  const double place = p * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(place), above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (place - std::floor(place)) * (sorted[above] - sorted[below]);
}

const char* sense(Bar side) {
  return side == Bar::at_least ? ">=" : side == Bar::at_most ? "<=" : side == Bar::equal ? "==" : "";
}

std::string processor() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const auto colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

}  // namespace

void add_bench_options(ProgramOptions& program, int rounds) {
  program.options.add_options()("rounds", po::value<int>()->default_value(rounds)->value_name("N"),
                                "interleaved rounds, after one that is not counted")(
      "json", po::value<std::string>()->value_name("FILE"), "write the rows as one JSON object");
}

void add_threads_option(ProgramOptions& program) {
  program.options.add_options()(
      "threads", po::value<int>()->value_name("N"),
      "threads of the computation (default: what OMP_NUM_THREADS or the machine says)");
}

BenchOptions read_bench_options(const po::variables_map& given) {
  BenchOptions options{.rounds = given["rounds"].as<int>()};
  if (options.rounds < 1 || options.rounds > 100'000) throw UsageError("--rounds must be 1 to 100000");
  if (given.count("threads")) {
    const int threads = given["threads"].as<int>();
    if (threads < 1 || threads > 1024) throw UsageError("--threads must be 1 to 1024");
    at::set_num_threads(threads);
  }
  if (given.count("json")) {
    options.json = given["json"].as<std::string>();
    const auto folder = std::filesystem::path(options.json).parent_path();
    if (!folder.empty() && !std::filesystem::is_directory(folder))
      throw UsageError("--json " + options.json + ": there is no folder " + folder.string());
  }
  return options;
}

std::vector<std::string> split_list(const std::string& option, const std::string& text) {
  std::vector<std::string> parts;
  std::set<std::string> seen;
  std::istringstream stream(text + ",");
  for (std::string part; std::getline(stream, part, ',');) {
    if (part.empty()) throw UsageError("--" + option + " " + text + ": an empty item");
    if (!seen.insert(part).second) throw UsageError("--" + option + " " + text + ": " + part + " twice");
    parts.push_back(part);
  }
  return parts;
}

std::int64_t parse_number(const std::string& option, const std::string& text, std::int64_t low,
                          std::int64_t high) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < low || value > high)
    throw UsageError(fmt::format("--{}: '{}' is no whole number of {} to {}", option, text, low, high));
  return value;
}

double status_bytes(const std::string& field) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(field + ":")) return 1024.0 * std::stod(line.substr(field.size() + 1));
  }
  throw Failure("/proc/self/status has no line " + field);
}

nlohmann::ordered_json bench_machine() {
  const auto bytes = static_cast<std::int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  return {{"cpu", processor()}, {"cores", std::thread::hardware_concurrency()}, {"memory_bytes", bytes}};
}

nlohmann::ordered_json bench_versions() {
  return {{"exfusion", exfusion_version()}, {"libtorch", libtorch_version()}};
}

BenchReport::BenchReport(BenchOptions options) : options_(std::move(options)) {
  fmt::print("{} threads, {} rounds; ratio: median (quartiles)\n", at::get_num_threads(), options_.rounds);
}

void BenchReport::add(const BenchRow& row) {
  std::vector<double> sorted = row.samples;
  std::ranges::sort(sorted);
  const double ratio = quantile(sorted, 0.5);
  const bool holds = (ratio == row.bar) || (row.side == Bar::at_least && ratio > row.bar) ||
                     (row.side == Bar::at_most && ratio < row.bar);
  std::string line = fmt::format("{:<42}{:>7.3f} ({:.3f}-{:.3f})", row.name, ratio, quantile(sorted, 0.25),
                                 quantile(sorted, 0.75));
  if (row.side != Bar::none)
    line += fmt::format("  {} {:.2f} {}", sense(row.side), row.bar, holds ? "holds" : "fails");
  nlohmann::ordered_json entry = {{"name", row.name},
                                  {"ratio", ratio},
                                  {"bar", nullptr},
                                  {"sense", nullptr},
                                  {"holds", nullptr},
                                  {"samples", row.samples},
                                  {"measured", nlohmann::ordered_json::object()}};
  if (row.side != Bar::none) entry["bar"] = row.bar, entry["sense"] = sense(row.side), entry["holds"] = holds;
  for (const auto& [name, value] : row.measured) {
    line += fmt::format("  {} {:.5g}", name, value);
    entry["measured"][name] = value;
  }
  fmt::print("{}\n", line);
  std::fflush(stdout);
  rows_.push_back(std::move(entry));
  if (options_.json.empty()) return;
  const nlohmann::ordered_json whole = {{"machine", bench_machine()},
                                        {"versions", bench_versions()},
                                        {"threads", at::get_num_threads()},
                                        {"rows", rows_}};
  write_file(options_.json, whole.dump(1) + "\n");
}

}  // namespace exfusion
