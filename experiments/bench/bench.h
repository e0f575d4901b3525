// What the benchmarks share: common options, the clock, rows with a bar, their table, and the JSON object
// that
// ./dev bench --report reads (docs/benchmarks.md). rows.py is the same for Python.
#pragma once
#include <chrono>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "core/median.h"
#include "program.h"

namespace exfusion {

// On which side of its bar a ratio holds.
enum class Bar { none, at_least, at_most, equal };

struct BenchRow {
  std::string name;             // "update/vit_s/n4/fp32"
  std::vector<double> samples;  // the ratio of each round; the row's ratio is their median
  Bar side = Bar::none;
  double bar = 0.0;
  std::vector<std::pair<std::string, double>> measured;  // medians that the ratios were made of: {"ms", 31.2}
};

struct BenchOptions {
  int rounds = 0;
  std::string json;  // file for the rows, "" for none
};

// Adds --rounds and --json.
void add_bench_options(ProgramOptions& program, int rounds);
void add_threads_option(ProgramOptions& program);
// Reads them and sets the number of threads, if it is given. Throws UsageError, also when the JSON file has
// no folder.
BenchOptions read_bench_options(const boost::program_options::variables_map& given);

// "a,b" as its parts; throws UsageError naming `option` when one is empty or occurs twice.
std::vector<std::string> split_list(const std::string& option, const std::string& text);
// A whole number of `low` .. `high`; throws UsageError.
std::int64_t parse_number(const std::string& option, const std::string& text, std::int64_t low,
                          std::int64_t high);

template <class Work>
double milliseconds(const Work& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
}

// Of /proc/self/status, in bytes: "VmRSS" (resident now) or "VmHWM" (its peak so far). Not getrusage's
// ru_maxrss, which a program inherits from the one that started it.
double status_bytes(const std::string& field);

nlohmann::ordered_json bench_machine();   // {cpu, cores, memory_bytes}
nlohmann::ordered_json bench_versions();  // {exfusion, libtorch}

// Prints each row as it comes and keeps the JSON file up to date: a long run that is stopped has its rows.
class BenchReport {
 public:
  explicit BenchReport(BenchOptions options);
  void add(const BenchRow& row);

 private:
  BenchOptions options_;
  nlohmann::ordered_json rows_ = nlohmann::ordered_json::array();
};

}  // namespace exfusion
