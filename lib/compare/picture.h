// A picture of a comparison: each arm's seeds, and its difference to dense with a 95 % interval.
#pragma once
#include <string>

#include "compare/summary.h"

namespace exfusion {

// An SVG file. A row for each arm that has accuracies: on the left a dot per seed and a tick at the mean, on
// the right the mean paired difference to dense with its t interval.
std::string comparison_svg(const StageSummary& stage, const std::string& title);

std::string xml_escaped(const std::string& text);

}  // namespace exfusion
