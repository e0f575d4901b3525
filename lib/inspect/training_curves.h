// Curves over training, and their phases.
#pragma once
#include <filesystem>
#include <nlohmann/json.hpp>

namespace exfusion {

// Adds `phases` to the report's model: of each curve of layer means that is there, its points and breakpoints
// (analysis/phases.h). Points are the rows that the run's own analysis wrote to `metrics` if there are at
// least as many as checkpoints (`earlier` reports and this one).
void put_phases(const std::filesystem::path& metrics, const nlohmann::ordered_json& earlier,
                nlohmann::ordered_json& report);

}  // namespace exfusion
