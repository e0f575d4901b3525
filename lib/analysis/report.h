// An analysis as JSON, as a summary in Markdown and as HDF5.
#pragma once
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "analysis/analysis.h"

namespace exfusion::analysis {

// {layers: [...], model: {...}}; a number that is undefined is null and its reason stands in `undefined`,
// under its path ("heldout_l1.mfg"). Names: docs/metrics.md.
nlohmann::ordered_json report_json(const Trace& trace, const TraceAnalysis& analysis);

// Sentences and tables. `source`: the trace's file name.
std::string report_markdown(const Trace& trace, const TraceAnalysis& analysis, const std::string& source);

// The JSON as groups, data sets of float64 (undefined: NaN) and text attributes. Throws FileError.
void write_report_hdf5(const nlohmann::ordered_json& report, const std::filesystem::path& file);

}  // namespace exfusion::analysis
