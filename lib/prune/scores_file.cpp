#include "prune/scores_file.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "analysis/scores.h"
#include "core/error.h"
#include "io/files.h"
#include "io/json_text.h"
#include "prune/weight_scores.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::uint64_t kLargestJson = 256u << 20;
constexpr std::int64_t kMostLayers = 1'000'000;

// The name that the reports use for a score.
std::string reported_name(const std::string& score) {
  std::vector<std::string> names;
  for (const analysis::Score& one : analysis::expert_scores({})) {
    if (score == one.name || score == fmt::format("s_{}{}{}", one.b, one.alpha, one.beta)) return one.name;
    names.push_back(one.name);
  }
  throw UsageError(fmt::format("--score {}: from the weights there are {}; from --scores {}", score,
                               fmt::join(weight_score_names(), ", "), fmt::join(names, ", ")));
}

ScoresByLayer from_trace(const fs::path& file, const std::string& score) {
  const analysis::Trace trace = analysis::read_trace(file);
  ScoresByLayer scores;
  for (const analysis::TraceLayer& layer : trace.layers) {
    const std::vector<analysis::Score> all =
        analysis::expert_scores(analysis::accumulate(layer, trace.experts));
    const auto found = std::ranges::find(all, score, &analysis::Score::name);
    if (found->values.empty())
      throw FormatError(
          fmt::format("{}: layer {}: no {}: {}", file.string(), layer.layer, score, found->reason));
    scores[layer.layer] = found->values;
  }
  return scores;
}

// Throws json::exception where the document is another one.
ScoresByLayer from_document(const json& document, const std::string& file, const std::string& score) {
  ScoresByLayer scores;
  for (const json& layer : document.at("layers")) {
    const auto number = layer.at("layer").get<std::int64_t>();
    if (number < 0 || number >= kMostLayers)
      throw FormatError(fmt::format("{}: layer {}: no number of a layer", file, number));
    if (!layer.contains("scores")) continue;  // looked at otherwise
    const json& all = layer["scores"];
    const json one =
        all.contains(score) && all[score].is_object() ? all[score].value("values", json()) : json();
    if (one.is_null())
      throw FormatError(fmt::format("{}: layer {}: {} is undefined there", file, number, score));
    if (std::ranges::any_of(one, [](const json& value) { return !value.is_number(); }))
      throw FormatError(
          fmt::format("{}: layer {}: {} holds something else than numbers", file, number, score));
    if (!scores.emplace(number, one.get<std::vector<double>>()).second)
      throw FormatError(fmt::format("{}: layer {} is there twice", file, number));
  }
  if (scores.empty()) throw FormatError(file + ": holds no scores of any layer");
  return scores;
}

ScoresByLayer from_json(const fs::path& file, const std::string& score) {
  const json document = parse_json_object(read_file(file, kLargestJson), file.string());
  try {
    return from_document(document, file.string(), score);
  } catch (const json::exception&) {
    throw FormatError(fmt::format(
        "{}: not exfusion-analyze's JSON: layers must be a list of {{layer, scores: {{NAME: {{values}}}}}}",
        file.string()));
  }
}

}  // namespace

void check_file_score(const std::string& score) {
  reported_name(score);
}

ScoresByLayer read_scores(const fs::path& file, const std::string& score) {
  const std::string name = reported_name(score);
  std::error_code ignored;
  if (!fs::is_regular_file(file, ignored))
    throw FormatError(file.string() +
                      (fs::exists(file, ignored) ? ": not a regular file" : ": no such file"));
  if (file.extension() == ".json" || std::ifstream(file, std::ios::binary).peek() == '{')
    return from_json(file, name);
  return from_trace(file, name);
}

}  // namespace exfusion
