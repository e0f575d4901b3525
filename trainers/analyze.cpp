// exfusion-analyze: what the experts of a run, of a checkpoint, or of any mixture of experts do.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "analysis/report.h"
#include "core/error.h"
#include "core/log.h"
#include "inspect/checkpoint_analysis.h"
#include "inspect/json_layers.h"
#include "inspect/run_analysis.h"
#include "io/files.h"
#include "io/json_text.h"
#include "program.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;
namespace po = boost::program_options;

constexpr const char* kFiles[] = {"analysis.json", "analysis.h5", "analysis.md"};

constexpr const char* kUsage =
    "exfusion-analyze RUN|CHECKPOINT|TRACE.h5|COUNTS.csv [--json] [-o DIR]\n\n"
    "Congestion, imbalance, specialisation and expert scores of every layer, each beside what a router "
    "without any would\n"
    "show; of a run or a checkpoint, whose experts may be top-k or fused, also what one expert for all does, "
    "and "
    "what the\n"
    "model loses on held-out images when an expert is taken out. -o writes analysis.json, analysis.h5 and "
    "analysis.md into\n"
    "DIR. The trace's format, and how to write one: docs/formats.md; the numbers: docs/metrics.md.\n\n"
    "  exfusion-analyze runs/quickstart -o runs/quickstart/analysis\n"
    "  exfusion-analyze runs/topk/checkpoints/best --groups load,congestion --json\n"
    "  exfusion-analyze olmoe.h5 -o olmoe/\n";

ProgramOptions describe_options() {
  ProgramOptions program{kUsage, po::options_description("Options"), "input"};
  program.options.add_options()("json", po::bool_switch(), "print one JSON object on stdout")(
      "out,o", po::value<std::string>()->value_name("DIR"),
      "the folder to write; an analysis of the same input that is there is replaced")(
      "groups", po::value<std::string>()->value_name("NAMES"),
      fmt::format("what to look at: {}, or all (the default: whatever the model has)",
                  fmt::join(inspection_group_names(), ","))
          .c_str())("data", po::value<std::vector<std::string>>()->composing()->value_name("KEY=VALUE"),
                    "override a key of the run's data section, as root=DIR; may be repeated")(
      "batches", po::value<std::int64_t>()->default_value(50)->value_name("N"),
      "held-out batches, up to 64 images in each");
  return program;
}

struct Report {
  nlohmann::ordered_json json;
  std::string markdown;
};

Report of_trace(const fs::path& file, const po::variables_map& given) {
  for (const char* option : {"groups", "data", "batches"}) {
    if (given.count(option) && !given[option].defaulted())
      throw UsageError(fmt::format("--{}: is for runs and checkpoints, {} is a file", option, file.string()));
  }
  const analysis::Trace trace = analysis::read_trace(file);
  const analysis::TraceAnalysis found = analysis::analyse_trace(trace);
  return {report_json(trace, found), report_markdown(trace, found, file.filename().string())};
}

Report of_run(const fs::path& folder, const po::variables_map& given) {
  AnalysisRequest request{.batches = given["batches"].as<std::int64_t>()};
  if (request.batches < 2 || request.batches > 10000) throw UsageError("--batches must be 2 to 10000");
  if (given.count("groups")) {
    std::istringstream words(given["groups"].as<std::string>());
    for (std::string word; std::getline(words, word, ',');) request.groups.push_back(word);
  }
  if (given.count("data")) request.data_sets = given["data"].as<std::vector<std::string>>();
  RunAnalysis found = analyse_run(folder, request);
  return {std::move(found.report), std::move(found.markdown)};
}

// What identifies an input: its place, however it is spelled and whatever link led there.
std::string source_of(const fs::path& input) {
  return fs::canonical(input).string();
}

// Throws where the folder cannot be made, or holds files that this analysis would replace and that are not of
// the same input.
void check_folder(const fs::path& folder, const std::string& source) {
  if (fs::exists(folder) && !fs::is_directory(folder))
    throw UsageError(fmt::format("--out {}: is a file; give a folder", folder.string()));
  if (fs::exists(folder / "recipe.yaml"))
    throw RunFolderError(fmt::format("{}: holds a run or a checkpoint; choose a folder inside it, {}",
                                     folder.string(), (folder / "analysis").string()));
  const bool free = std::ranges::none_of(kFiles, [&](const char* name) { return fs::exists(folder / name); });
  if (free) return;
  std::string there = "something that they do not name";
  try {
    const std::string file = (folder / kFiles[0]).string();
    there = parse_json_object(read_file(file), file).at("model").at("source").get<std::string>();
  } catch (const std::exception&) {  // no JSON of this program
  }
  if (there != source)
    throw RunFolderError(fmt::format("{}: {} there are of {}; choose another folder, or remove them",
                                     folder.string(), fmt::join(kFiles, ", "), there));
}

// Names of domains come from outside and need not be UTF-8.
std::string text(const nlohmann::ordered_json& report, int indent) {
  return report.dump(indent, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

void write_folder(const fs::path& folder, const Report& report) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw FileError(fmt::format("{}: {}", folder.string(), error.message()));
  write_file(folder / kFiles[0], text(report.json, 1));
  analysis::write_report_hdf5(report.json, folder / kFiles[1]);
  write_file(folder / kFiles[2], report.markdown);
  log_info("written: {}", (folder / kFiles[2]).string());
}

int run(int argc, char** argv) {
  const ProgramOptions program = describe_options();
  const po::variables_map given = parse_options(program, argc, argv);
  if (answered(program, given)) return 0;
  if (!given.count("input"))
    throw UsageError("give a run, a checkpoint, a trace or a CSV of counts; see --help");
  const fs::path input = given["input"].as<std::string>();
  if (!fs::exists(input)) throw UsageError(input.string() + ": no such file or folder");
  if (!given["json"].as<bool>() && !given.count("out"))
    throw UsageError("nothing to do: --json prints the analysis, -o DIR writes it");
  const std::string source = source_of(input);
  if (given.count("out")) check_folder(given["out"].as<std::string>(), source);
  Report report = fs::is_directory(input) ? of_run(input, given) : of_trace(input, given);
  add_fields(report.json["model"], {{"source", source}});
  if (given.count("out")) write_folder(given["out"].as<std::string>(), report);
  if (given["json"].as<bool>()) std::cout << text(report.json, -1);
  return 0;
}

}  // namespace
}  // namespace exfusion

int main(int argc, char** argv) {
  return exfusion::run_program("exfusion-analyze", [&] { return exfusion::run(argc, argv); });
}
