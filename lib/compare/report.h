// The report of a comparison: comparison.json for programs, comparison.md for people.
#pragma once
#include <string>

#include "compare/comparison.h"

namespace exfusion {

// Accuracies and differences are fractions of 1. `command`: as it was typed.
std::string report_json(const ComparisonPlan& plan, const ComparisonResult& result,
                        const std::string& command);

// Accuracies in percent, differences in points.
std::string report_markdown(const ComparisonPlan& plan, const ComparisonResult& result,
                            const std::string& command);

}  // namespace exfusion
