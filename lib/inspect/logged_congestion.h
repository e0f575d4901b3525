// Congestion over training, with intervals, from the sums that a run's own analyses wrote.
#pragma once
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>

namespace exfusion {

// A list of {layers, model}, one for each step at which the run wrote both groups, `load` and `congestion`:
// gamma_eff, what it is compared with, and their intervals, as in the report of a trace. Empty without such
// rows. `layers`: those of a report of the run, whose numbers are looked for. `progress` gets the part that
// is done, and may throw. Throws FormatError for sums that cannot be.
nlohmann::ordered_json logged_congestion(const std::filesystem::path& metrics,
                                         const nlohmann::ordered_json& layers,
                                         const std::function<void(double)>& progress);

}  // namespace exfusion
