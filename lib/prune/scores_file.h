// Scores of experts from a file.
#pragma once
#include <filesystem>
#include <string>

#include "prune/selection.h"

namespace exfusion {

// Throws UsageError unless `score` is a name of analysis/scores.h, "s_<b><alpha><beta>", or one that only
// exfusion-analyze's JSON can hold (rsd, taylor).
void check_file_score(const std::string& score);

// `file` is a routing trace (docs/formats.md) or the JSON of exfusion-analyze. Throws UsageError for another
// name, FormatError where the file has no such score, FileError.
ExpertScores read_scores(const std::filesystem::path& file, const std::string& score);

}  // namespace exfusion
