#include "compare/planned_run.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "compare/statistics.h"
#include "core/error.h"
#include "core/median.h"
#include "io/files.h"
#include "io/json_text.h"
#include "io/metrics_reader.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::uint64_t kResultLimit = 1 << 16;  // bytes of a result that is read at all

fs::path beside(const Launch& launch, const PlannedRun& run, const std::string& ending) {
  return launch.runs / (run.name + ending);
}

double last_value(const MetricsReader& metrics, const fs::path& file, const std::string& column) {
  const auto values = metrics.column(column);
  if (!values || values->empty()) throw FormatError(file.string() + ": no rows in " + column);
  return values->back();
}

std::optional<double> last_value_if_any(const MetricsReader& metrics, const std::string& column) {
  const auto values = metrics.column(column);
  return values && !values->empty() ? std::optional(values->back()) : std::nullopt;
}

double number(const json& object, const char* key, const fs::path& file) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_number())
    throw FormatError(fmt::format("{}: '{}' must be a number", file.string(), key));
  return found->get<double>();
}

std::optional<double> number_if_any(const json& object, const char* key, const fs::path& file) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? std::nullopt : std::optional(number(object, key, file));
}

json or_null(const std::optional<double>& value) {
  return value ? json(*value) : json(nullptr);
}

RunResult keep(const Launch& launch, const PlannedRun& run, const RunResult& result) {
  const json kept = {{"identical_to_dense", result.identical_to_dense},
                     {"sets", run.sets},
                     {"steps", result.steps},
                     {"accuracy", result.accuracy},
                     {"validation_accuracy", or_null(result.validation_accuracy)},
                     {"step_time", result.step_time},
                     {"seconds", result.seconds},
                     {"flops_per_sample", or_null(result.flops_per_sample)},
                     {"parameters_training", or_null(result.parameters_training)},
                     {"parameters_deployed", or_null(result.parameters_deployed)},
                     {"peak_memory", or_null(result.peak_memory)}};
  write_file(beside(launch, run, ".json"), kept.dump(1) + "\n");
  return result;
}

}  // namespace

Job run_job(const Launch& launch, const PlannedRun& run) {
  const fs::path folder = launch.runs / run.name;
  const std::string train = (launch.programs / "exfusion-train").string();
  Job job{run.name, {}, beside(launch, run, ".log"), run.scaled_by};
  fs::create_directories(folder.parent_path());
  if (fs::exists(folder / "recipe.yaml")) {
    job.commands.push_back({{train, "--resume", folder.string()}, {}});
  } else {  // what a run that was killed at its start may have left holds nothing
    std::vector<std::string> words = {train, launch.recipe, "--out", folder.string(), "--overwrite"};
    for (const std::string& set : run.sets) words.insert(words.end(), {"--set", set});
    if (!run.scaled_by.empty())
      words.insert(words.end(), {"--set", "control_from=" + (launch.runs / run.scaled_by).string()});
    job.commands.push_back({std::move(words), {}});
  }
  if (run.scored != Scored::uniform_soup) return job;
  const std::string soup = beside(launch, run, ".soup").string();
  job.commands.push_back({{(launch.programs / "exfusion-export").string(), folder.string(), "--average",
                           std::to_string(kSoupCheckpoints), "-o", soup, "--overwrite"},
                          {}});
  Command evaluate{{(launch.programs / "exfusion-eval").string(), soup, "--data", launch.data, "--precision",
                    launch.precision, "--json"},
                   beside(launch, run, ".soup.json")};
  if (!launch.root.empty()) evaluate.words.insert(evaluate.words.end(), {"--root", launch.root});
  job.commands.push_back(std::move(evaluate));
  return job;
}

std::optional<RunResult> kept_result(const Launch& launch, const PlannedRun& run) {
  const fs::path file = beside(launch, run, ".json");
  if (!fs::exists(file)) return std::nullopt;
  const json kept = parse_json_object(read_file(file, kResultLimit), file.string());
  if (kept.value("sets", json()) != json(run.sets))
    throw FormatError(
        fmt::format("{}: of a run with other settings than this one ({}); move it away to repeat the run",
                    file.string(), fmt::join(run.sets, " ")));
  RunResult result;
  result.identical_to_dense = kept.value("identical_to_dense", json()) == json(true);
  result.steps = kept.value("steps", json()).is_number_integer() ? kept["steps"].get<std::int64_t>() : -1;
  result.accuracy = number(kept, "accuracy", file);
  result.validation_accuracy = number_if_any(kept, "validation_accuracy", file);
  result.step_time = number(kept, "step_time", file);
  result.seconds = number(kept, "seconds", file);
  result.flops_per_sample = number_if_any(kept, "flops_per_sample", file);
  result.parameters_training = number_if_any(kept, "parameters_training", file);
  result.parameters_deployed = number_if_any(kept, "parameters_deployed", file);
  result.peak_memory = number_if_any(kept, "peak_memory", file);
  return result;
}

RunResult keep_result(const Launch& launch, const PlannedRun& run) {
  const fs::path file = launch.runs / run.name / "metrics.h5";
  const MetricsReader metrics(file.string());
  RunResult result;
  result.steps = static_cast<std::int64_t>(last_value(metrics, file, "eval/step"));
  const std::vector<double> times = metrics.column("train/step_time").value_or(std::vector<double>());
  if (times.empty()) throw FormatError(file.string() + ": no rows in train/step_time");
  result.step_time = median(times);
  result.seconds = mean(times) * static_cast<double>(result.steps);
  if (run.scored == Scored::uniform_soup) {
    const fs::path soup = beside(launch, run, ".soup.json");
    result.accuracy =
        number(parse_json_object(read_file(soup, kResultLimit), soup.string()), "accuracy", soup);
  } else {
    const char* column = run.scored == Scored::moving ? "ema/accuracy" : "eval/accuracy";
    result.accuracy = last_value(metrics, file, column);
  }
  result.validation_accuracy = last_value_if_any(
      metrics, run.scored == Scored::moving ? "ema_validation/accuracy" : "validation/accuracy");
  result.flops_per_sample = last_value_if_any(metrics, "cost/flops_per_sample");
  result.parameters_training = last_value_if_any(metrics, "cost/parameters_training");
  result.parameters_deployed = last_value_if_any(metrics, "cost/parameters_deployed");
  result.peak_memory = last_value_if_any(metrics, "cost/peak_memory");
  return keep(launch, run, result);
}

RunResult keep_identical(const Launch& launch, const PlannedRun& run) {
  RunResult result;
  result.identical_to_dense = true;
  return keep(launch, run, result);
}

}  // namespace exfusion
