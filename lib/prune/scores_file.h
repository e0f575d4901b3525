// Scores of experts from a file.
#pragma once
#include <filesystem>
#include <string>

#include "prune/selection.h"

namespace exfusion {

// Throws UsageError unless `score` is a name of analysis/scores.h or "s_<b><alpha><beta>".
void check_file_score(const std::string& score);

// `file` is a routing trace (docs/formats.md) or the JSON of exfusion-analyze. Throws UsageError for another
// name, FormatError where the file has no such score, FileError.
ScoresByLayer read_scores(const std::filesystem::path& file, const std::string& score);

}  // namespace exfusion
