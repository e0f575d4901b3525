// What a recipe would train, without training it.
#pragma once
#include <string>

#include "train/run_config.h"

namespace exfusion {

// Reads the data, builds the model and the banks, and describes them: sizes, steps, memory. Throws as
// run_training does.
std::string plan_text(const RunConfig& config);

}  // namespace exfusion
