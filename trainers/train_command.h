// What one rank was started for, known before it meets the others.
#pragma once
#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include "program.h"
#include "train/run_config.h"

namespace exfusion {

struct TrainCommand {
  std::string purpose;              // "training", "--resume RUN", "--resume auto", "--check-cluster" ...
  std::optional<RunConfig> config;  // none: --check-cluster without a recipe
  std::string resolved;             // the recipe

  // What must be the same on all ranks (dist/agreement.h).
  std::map<std::string, std::string> fields() const;
};

// The run's folder: RUN of --resume, --out, else runs/NAME.
std::filesystem::path run_path(const boost::program_options::variables_map& given, const std::string& name);

// Reads the recipe, and checks what can be checked before the ranks meet: device, memory, folder. Throws
// UsageError, RecipeError, CheckpointError.
TrainCommand read_command(const boost::program_options::variables_map& given);

}  // namespace exfusion
