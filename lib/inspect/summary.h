// An analysis of a run as sentences and tables.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace exfusion {

// `report`: {layers, model, checkpoints} of run_analysis.h; `routing`: the part that lib/analysis writes,
// with its title, or "".
std::string summary_markdown(const std::string& name, const nlohmann::ordered_json& report,
                             const std::string& routing);

}  // namespace exfusion
