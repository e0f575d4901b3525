// exfusion-train: trains what a recipe describes, or goes on with an earlier run.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/log.h"
#include "core/recipe.h"
#include "data/dataset.h"
#include "fusion/fusion_config.h"
#include "models/model.h"
#include "optim/schedule.h"
#include "program.h"
#include "train/loop.h"
#include "train/plan.h"
#include "train/start_weights.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;
namespace po = boost::program_options;

constexpr const char* kUsage =
    "exfusion-train RECIPE [--set key=value]... [--out DIR]\n"
    "exfusion-train --resume RUN [--set key=value]...\n\n"
    "Trains the model that a recipe (YAML) describes and exports it. The run's folder, runs/<name> unless "
    "--out\n"
    "says otherwise, receives the resolved recipe, the log, metrics.h5, TensorBoard events, checkpoints and "
    "export/.\n"
    "Ctrl-C finishes the step, saves, and says how to go on.\n\n"
    "  exfusion-train recipes/quickstart.yaml\n"
    "  exfusion-train recipes/quickstart.yaml --set fusion=none --out runs/dense     the dense baseline\n"
    "  exfusion-train recipes/vit_s.yaml --set fusion.experts=8 --set train.epochs=20\n"
    "  exfusion-train --resume runs/vit_s --set train.epochs=30\n\n"
    "Exit codes: 0 done, 1 the run failed, 2 bad input, 130/143 stopped by Ctrl-C/SIGTERM after saving.\n";

ProgramOptions describe_options() {
  ProgramOptions program{kUsage, po::options_description("Options"), "recipe"};
  program.options.add_options()("set",
                                po::value<std::vector<std::string>>()->composing()->value_name("KEY=VALUE"),
                                "override one value of the recipe; may be repeated")(
      "out", po::value<std::string>()->value_name("DIR"), "the run's folder (default: runs/<name>)")(
      "overwrite", po::bool_switch(), "replace the run's folder if it exists")(
      "resume", po::value<std::string>()->value_name("RUN"),
      "go on with the run in this folder, bit for bit; --set may change its length, cadences, threads and "
      "data.root")("print-recipe", po::bool_switch(),
                   "print the resolved recipe, defaults included, and stop")(
      "dry-run", po::bool_switch(), "build everything, print what would be trained, and stop")(
      "json", po::bool_switch(), "print one JSON object with the result on stdout")(
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

int train(const po::variables_map& given, const RunConfig& config, const std::string& resolved) {
  const bool resume = given.count("resume") != 0;
  const fs::path path = resume               ? fs::path(given["resume"].as<std::string>())
                        : given.count("out") ? fs::path(given["out"].as<std::string>())
                                             : fs::path("runs") / config.name;
  if (given["overwrite"].as<bool>()) check_sources_are_outside(config, path);
  const RunFolder folder =
      resume ? RunFolder::open(path) : RunFolder::create(path, given["overwrite"].as<bool>());
  RunOutcome outcome;
  try {
    outcome = run_training(config, resolved, folder, resume);
  } catch (const BadInput&) {  // refused before its first step: the corrected command must find the way free
    if (!resume && fs::is_empty(folder.checkpoints())) folder.withdraw();
    throw;
  }
  if (outcome.already_finished)
    log_info("{}: the run is finished: {} steps are done", path.string(), outcome.step);
  log_info("test accuracy {:.4f} ({}), {:.4f} (fp32); best {:.4f}, selected on {}", outcome.accuracy,
           config.train.precision, outcome.accuracy_fp32, outcome.best_accuracy, outcome.best_by);
  if (given["json"].as<bool>())
    std::cout << nlohmann::json({{"run", path.string()},
                                 {"steps", outcome.step},
                                 {"skipped", outcome.skipped},
                                 {"accuracy", outcome.accuracy},
                                 {"accuracy_fp32", outcome.accuracy_fp32},
                                 {"best_accuracy", outcome.best_accuracy},
                                 {"best_by", outcome.best_by},
                                 {"finished_before", outcome.already_finished},
                                 {"export", outcome.exported.string()}})
                     .dump()
              << "\n";
  return 0;
}

int run(int argc, char** argv) {
  const ProgramOptions program = describe_options();
  const po::variables_map given = parse_options(program, argc, argv);
  if (answered(program, given)) return 0;
  if (given["list"].as<bool>()) return list_choices(), 0;
  if (given.count("recipe") == given.count("resume"))
    throw UsageError(given.count("recipe")
                         ? "give a recipe or --resume RUN, not both (a run keeps its recipe)"
                         : "give a recipe, for example recipes/quickstart.yaml, or --resume RUN; see --help");
  if (given.count("resume") && (given.count("out") || given["overwrite"].as<bool>()))
    throw UsageError("--resume goes on in the run's own folder: --out and --overwrite do not go with it");

  const auto sets =
      given.count("set") ? given["set"].as<std::vector<std::string>>() : std::vector<std::string>{};
  const bool resume = given.count("resume") != 0;
  // Opening says what is wrong with the folder before its recipe is missed.
  Recipe recipe = Recipe::load(resume ? RunFolder::open(given["resume"].as<std::string>()).recipe().string()
                                      : given["recipe"].as<std::string>(),
                               sets);
  if (resume) {
    for (const std::string& key : recipe.set_keys()) {
      if (!may_change_on_resume(key))
        throw UsageError(
            fmt::format("--set {}: a resumed run keeps its recipe; only the length of training, cadences, "
                        "threads and data.root may change",
                        key));
    }
  }
  const RunConfig config = parse_run(recipe);
  const std::string resolved = recipe.resolved();
  const auto is_set = [&](const char* key) {
    return std::count(recipe.set_keys().begin(), recipe.set_keys().end(), key) != 0;
  };
  if (resume && is_set("train.epochs") && config.train.steps > 0 && !is_set("train.steps"))
    throw UsageError(
        fmt::format("--set train.epochs: the run's length is train.steps={}, which wins; set that instead",
                    config.train.steps));
  if (given["json"].as<bool>() && (given["print-recipe"].as<bool>() || given["dry-run"].as<bool>()))
    throw UsageError("--json describes a training's result; it does not go with --print-recipe or --dry-run");
  if (given["print-recipe"].as<bool>()) return std::cout << resolved, 0;
  if (given["dry-run"].as<bool>()) return std::cout << plan_text(config), 0;
  return train(given, config, resolved);
}

}  // namespace
}  // namespace exfusion

int main(int argc, char** argv) {
  return exfusion::run_program("exfusion-train", [&] { return exfusion::run(argc, argv); });
}
