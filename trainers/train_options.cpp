#include "train_options.h"

#include <fmt/format.h>

#include <algorithm>
#include <iostream>
#include <utility>

#include "core/error.h"
#include "data/dataset.h"
#include "dist/launch.h"
#include "fusion/fusion_config.h"
#include "models/model.h"
#include "nn/ffn_config.h"
#include "optim/schedule.h"
#include "train/control.h"

namespace exfusion {
namespace po = boost::program_options;
namespace {

constexpr const char* kUsage =
    "exfusion-train RECIPE [--set key=value]... [--out DIR]\n"
    "exfusion-train --resume RUN [--set key=value]...\n\n"
    "Trains the model that a recipe (YAML) describes and exports it. The run's folder, runs/<name> unless\n"
    "--out says otherwise, receives the resolved recipe, the log, metrics.h5, TensorBoard events, "
    "checkpoints\n"
    "and export/.\n"
    "Ctrl-C finishes the step, saves, and says how to go on.\n\n"
    "  exfusion-train recipes/quickstart.yaml\n"
    "  exfusion-train recipes/quickstart.yaml --set fusion=none --out runs/dense     the dense baseline\n"
    "  exfusion-train recipes/vit_s.yaml --set fusion.experts=8 --set train.epochs=20\n"
    "  exfusion-train --resume runs/vit_s --set train.epochs=30\n"
    "  exfusion-train recipes/vit_s.yaml --nproc 2                                   two ranks on this "
    "machine\n"
    "  torchrun --no-python --nproc-per-node 2 exfusion-train recipes/vit_s.yaml     the same; or srun, "
    "mpirun\n\n"
    "Exit codes: 0 done, 1 the run failed, 2 bad input, 130/143 stopped by Ctrl-C/SIGTERM after saving.\n";

}  // namespace

ProgramOptions train_options() {
  ProgramOptions program{kUsage, po::options_description("Options"), "recipe"};
  program.options.add_options()("set",
                                po::value<std::vector<std::string>>()->composing()->value_name("KEY=VALUE"),
                                "override one value of the recipe; may be repeated")(
      "out", po::value<std::string>()->value_name("DIR"), "the run's folder (default: runs/<name>)")(
      "overwrite", po::bool_switch(), "replace the run's folder if it exists")(
      "resume", po::value<std::string>()->value_name("RUN"),
      "go on with the run in this folder, bit for bit; --set may change its length, cadences, threads, "
      "data.root and dist. With a RECIPE and the word auto: go on if the run's folder is there, else start")(
      "print-recipe", po::bool_switch(), "print the resolved recipe, defaults included, and stop")(
      "dry-run", po::bool_switch(), "build everything, print what would be trained, and stop")(
      "profile", po::value<std::int64_t>()->default_value(0, "")->value_name("N"),
      "after 3 steps, log where the time of the next N goes and write it to profile.json (Perfetto)")(
      "nproc", po::value<std::int64_t>()->value_name("N"), "start N ranks of this command on this machine")(
      "check-cluster", po::bool_switch(),
      "connect the ranks, run every collective, print bandwidths, and stop; a recipe's dist section counts")(
      "json", po::bool_switch(), "print one JSON object with the result on stdout, also after Ctrl-C")(
      "list", po::bool_switch(), "list models, data sets, schedules and weight modes");
  return program;
}

void list_choices() {
  const std::vector<std::pair<const char*, std::vector<std::string>>> kinds = {
      {"model.arch", model_names()},           {"model.ffn.name", ffn_names()},
      {"data.name", dataset_names()},          {"schedule.name", schedule_names()},
      {"fusion.weights", weight_mode_names()}, {"control", control_names()}};
  for (const auto& [kind, names] : kinds)
    std::cout << fmt::format("{:<16}{}\n", kind, fmt::join(names, "  "));
}

bool resumes_automatically(const po::variables_map& given) {
  return given.count("resume") && given["resume"].as<std::string>() == "auto";
}

void check_options(const po::variables_map& given) {
  if (given["check-cluster"].as<bool>()) {
    for (const char* other : {"resume", "out"}) {
      if (given.count(other))
        throw UsageError(fmt::format("--check-cluster trains nothing: --{} does not go with it", other));
    }
    if (given.count("set") && !given.count("recipe"))
      throw UsageError("--set overrides values of a recipe: give one, for example recipes/quickstart.yaml");
    return;
  }
  const bool automatic = resumes_automatically(given);
  if (automatic && !given.count("recipe"))
    throw UsageError("--resume auto needs the recipe: exfusion-train RECIPE --resume auto [--out DIR]");
  if (!automatic && given.count("recipe") == given.count("resume"))
    throw UsageError(given.count("recipe")
                         ? "give a recipe or --resume RUN, not both (a run keeps its recipe)"
                         : "give a recipe, for example recipes/quickstart.yaml, or --resume RUN; see --help");
  if (given.count("resume") && !automatic && (given.count("out") || given["overwrite"].as<bool>()))
    throw UsageError("--resume goes on in the run's own folder: --out and --overwrite do not go with it");

  const std::int64_t profiled = given["profile"].as<std::int64_t>();
  if (profiled < 0 || profiled > 1000 || (profiled == 0 && !given["profile"].defaulted()))
    throw UsageError(fmt::format("--profile is a number of steps, 1 to 1000, got {}", profiled));
  if (!given["print-recipe"].as<bool>() && !given["dry-run"].as<bool>()) return;
  if (given["json"].as<bool>() || profiled > 0)
    throw UsageError(
        "--json and --profile describe a training; they do not go with --print-recipe or --dry-run");
}

RunConfig parse_resumed(Recipe& recipe) {
  const auto& keys = recipe.set_keys();
  for (const std::string& key : keys) {
    if (!may_change_on_resume(key))
      throw UsageError(
          fmt::format("--set {}: a resumed run keeps its recipe; only the length of training, cadences, "
                      "threads, train.recompute, data.root and dist may change",
                      key));
  }
  RunConfig config = parse_run(recipe);
  const auto is_set = [&](const char* key) { return std::count(keys.begin(), keys.end(), key) != 0; };
  if (is_set("train.epochs") && config.train.steps > 0 && !is_set("train.steps"))
    throw UsageError(
        fmt::format("--set train.epochs: the run's length is train.steps={}, which wins; set that instead",
                    config.train.steps));
  return config;
}

int ranks_to_start(const po::variables_map& given) {
  if (!given.count("nproc")) return 0;
  const std::int64_t ranks = given["nproc"].as<std::int64_t>();
  if (ranks < 1 || ranks > 1024)
    throw UsageError(fmt::format("--nproc is a number of ranks, 1 to 1024, got {}", ranks));
  const Launch launch = launch_from_environment();
  if (!launch.launcher.empty())
    throw UsageError(fmt::format(
        "--nproc starts ranks, but this process is already rank {} of {} ({}): leave out one of the two",
        launch.rank, launch.world,
        launch.launcher == "environment" ? "RANK is set" : "started by " + launch.launcher));
  return static_cast<int>(ranks);
}

std::vector<std::string> without_nproc(int argc, char** argv) {
  std::vector<std::string> rest;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--nproc")
      ++i;  // its value
    else if (!word.starts_with("--nproc="))
      rest.push_back(word);
  }
  return rest;
}

}  // namespace exfusion
