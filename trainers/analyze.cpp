// exfusion-analyze: what the experts of any mixture of experts do, from a trace of its routing.
#include <fmt/format.h>

#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "analysis/report.h"
#include "core/error.h"
#include "core/log.h"
#include "io/files.h"
#include "program.h"

namespace exfusion {
namespace {

namespace po = boost::program_options;

constexpr const char* kUsage =
    "exfusion-analyze TRACE.h5|COUNTS.csv [--json] [-o DIR]\n\n"
    "Congestion, imbalance, specialisation and expert scores of every layer, each beside what a router "
    "without any would\n"
    "show. -o writes analysis.json, analysis.h5 and analysis.md into DIR. The trace's format, and how to "
    "write one:\n"
    "docs/formats.md; the numbers: docs/metrics.md.\n\n"
    "  exfusion-analyze olmoe.h5 -o olmoe/\n";

ProgramOptions describe_options() {
  ProgramOptions program{kUsage, po::options_description("Options"), "trace"};
  program.options.add_options()("json", po::bool_switch(), "print one JSON object on stdout")(
      "out,o", po::value<std::string>()->value_name("DIR"), "the folder to write");
  return program;
}

// Names of domains come from outside and need not be UTF-8.
std::string text(const nlohmann::ordered_json& report, int indent) {
  return report.dump(indent, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

void write_folder(const std::filesystem::path& folder, const analysis::Trace& trace,
                  const analysis::TraceAnalysis& found, const nlohmann::ordered_json& report,
                  const std::string& source) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw FileError(fmt::format("{}: {}", folder.string(), error.message()));
  write_file(folder / "analysis.json", text(report, 1));
  analysis::write_report_hdf5(report, folder / "analysis.h5");
  write_file(folder / "analysis.md", analysis::report_markdown(trace, found, source));
  log_info("written: {}", (folder / "analysis.md").string());
}

int run(int argc, char** argv) {
  const ProgramOptions program = describe_options();
  const po::variables_map given = parse_options(program, argc, argv);
  if (answered(program, given)) return 0;
  if (!given.count("trace")) throw UsageError("give a trace or a CSV of counts; see --help");
  if (!given["json"].as<bool>() && !given.count("out"))
    throw UsageError("nothing to do: --json prints the analysis, -o DIR writes it");
  const std::filesystem::path file = given["trace"].as<std::string>();
  const analysis::Trace trace = analysis::read_trace(file);
  const analysis::TraceAnalysis found = analysis::analyse_trace(trace);
  const nlohmann::ordered_json report = analysis::report_json(trace, found);
  if (given.count("out"))
    write_folder(given["out"].as<std::string>(), trace, found, report, file.filename().string());
  if (given["json"].as<bool>()) std::cout << text(report, -1);
  return 0;
}

}  // namespace
}  // namespace exfusion

int main(int argc, char** argv) {
  return exfusion::run_program("exfusion-analyze", [&] { return exfusion::run(argc, argv); });
}
