// What a recipe would train, without training it.
#pragma once
#include <string>

#include "dist/launch.h"
#include "train/step.h"

namespace exfusion {

// What holds experts in this run, or that nothing does.
std::string experts_text(const RunConfig& config, const TrainingState& state);

// Reads the data, builds the model and the banks, and describes them: sizes, steps, cost, ranks and what each
// of them holds; speed and memory as two trial steps on one rank show them. Throws as run_training does.
std::string plan_text(const RunConfig& config, const Launch& launch = {});

}  // namespace exfusion
