#include "observe/analysis_config.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <optional>

#include "core/recipe.h"

namespace exfusion {
namespace {

std::optional<std::int64_t> step_number(const std::string& word) {
  std::int64_t step = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), step);
  if (error != std::errc() || end != word.data() + word.size() || step < 1) return std::nullopt;
  return step;
}

void parse_groups(Section& section, AnalysisConfig& config) {
  const std::vector<std::string> words = section.words("groups", {"none"}), known = analysis_group_names();
  if (words == std::vector<std::string>{"none"}) return;
  if (words == std::vector<std::string>{"all"}) {
    config.groups = known;
    return;
  }
  for (const std::string& word : words) {
    if (std::ranges::find(known, word) == known.end() || std::ranges::count(words, word) > 1)
      return section.problem("groups",
                             "analysis.groups must be none, all or a list of different words of load, "
                             "congestion, fused, lens, scores; got '" +
                                 word + "'");
  }
  if (words.empty()) section.problem("groups", "analysis.groups is an empty list: say none");
  config.groups = words;
}

void parse_steps(Section& section, AnalysisConfig& config) {
  const std::vector<std::string> words = section.words("every", {config.every});
  if (words.size() == 1 && (words[0] == "log2" || words[0] == "checkpoint")) {
    config.every = words[0];
    return;
  }
  config.every = "steps";
  for (const std::string& word : words) {
    const auto step = step_number(word);
    if (!step || (!config.steps.empty() && *step <= config.steps.back()))
      return section.problem(
          "every", "analysis.every must be log2, checkpoint or a list of ascending steps from 1 on; got '" +
                       word + "'");
    config.steps.push_back(*step);
  }
  if (words.empty()) section.problem("every", "analysis.every is an empty list");
}

}  // namespace

std::vector<std::string> analysis_group_names() {
  return {"load", "congestion", "fused", "lens", "scores"};
}

AnalysisConfig AnalysisConfig::parse(Section section) {
  AnalysisConfig config;
  parse_groups(section, config);
  parse_steps(section, config);
  config.batches = section.in_range<std::int64_t>("batches", config.batches, 2, 1000);
  config.batch = section.in_range<std::int64_t>("batch", config.batch, 1, 4096);
  return config;
}

bool AnalysisConfig::wants(const std::string& group) const {
  return std::ranges::find(groups, group) != groups.end();
}

bool AnalysisConfig::due(std::int64_t step, bool checkpoint, bool last) const {
  if (!on()) return false;
  if (every == "steps") return std::ranges::binary_search(steps, step);
  return last || (every == "log2" ? std::has_single_bit(static_cast<std::uint64_t>(step)) : checkpoint);
}

}  // namespace exfusion
