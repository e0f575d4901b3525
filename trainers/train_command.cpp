#include "train_command.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "core/recipe.h"
#include "dist/launch.h"
#include "train/device.h"
#include "train/memory.h"
#include "train/run_folder.h"
#include "train/start_weights.h"
#include "train/versions.h"
#include "train_options.h"

namespace exfusion {
namespace {
namespace po = boost::program_options;

std::string purpose_of(const po::variables_map& given) {
  for (const char* other : {"check-cluster", "print-recipe", "dry-run"}) {
    if (given[other].as<bool>()) return std::string("--") + other;
  }
  if (resumes_automatically(given)) return "--resume auto";
  return given.count("resume") ? "--resume RUN" : "training";
}

}  // namespace

std::map<std::string, std::string> TrainCommand::fields() const {
  std::map<std::string, std::string> all = {
      {"purpose", purpose}, {"exfusion", exfusion_version()}, {"libtorch", libtorch_version()}};
  if (config) all.insert({{"recipe", resolved}, {"seed", std::to_string(config->seed)}});
  return all;
}

std::filesystem::path run_path(const po::variables_map& given, const std::string& name) {
  if (given.count("resume") && !resumes_automatically(given)) return given["resume"].as<std::string>();
  return given.count("out") ? std::filesystem::path(given["out"].as<std::string>())
                            : std::filesystem::path("runs") / name;
}

TrainCommand read_command(const po::variables_map& given) {
  TrainCommand command{.purpose = purpose_of(given), .config = {}, .resolved = {}};
  const bool resume = given.count("resume") && !resumes_automatically(given);
  if (!resume && !given.count("recipe")) return command;
  const auto sets =
      given.count("set") ? given["set"].as<std::vector<std::string>>() : std::vector<std::string>{};
  if (resume) RunFolder::check(given["resume"].as<std::string>());
  Recipe recipe = Recipe::load(
      resume ? given["resume"].as<std::string>() + "/recipe.yaml" : given["recipe"].as<std::string>(), sets);
  command.config = resume ? parse_resumed(recipe) : parse_run(recipe);
  command.resolved = recipe.resolved();
  if (given["check-cluster"].as<bool>() || given["print-recipe"].as<bool>()) return command;
  const Launch launch = launch_from_environment();
  training_device(command.config->train.device);
  check_memory(*command.config, launch.world, std::max(1, launch.local_world));
  if (given["overwrite"].as<bool>())
    check_sources_are_outside(*command.config, run_path(given, command.config->name));
  return command;
}

}  // namespace exfusion
