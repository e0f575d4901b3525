// exfusion-train: trains what a recipe describes, or goes on with an earlier run.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/error.h"
#include "core/log.h"
#include "core/recipe.h"
#include "dist/cluster_check.h"
#include "dist/launch.h"
#include "dist/local_ranks.h"
#include "program.h"
#include "train/loop.h"
#include "train/memory.h"
#include "train/plan.h"
#include "train/start_weights.h"
#include "train_options.h"

namespace exfusion {
namespace {
namespace fs = std::filesystem;
namespace po = boost::program_options;

// What is known of a run that a signal stopped: no accuracy of its last step, no export.
std::string json_text(const fs::path& run, const RunOutcome& outcome) {
  nlohmann::json result = {{"run", run.string()},
                           {"steps", outcome.step},
                           {"skipped", outcome.skipped},
                           {"signal", outcome.signal}};
  if (outcome.signal == 0)
    result.update({{"accuracy", outcome.accuracy},
                   {"accuracy_fp32", outcome.accuracy_fp32},
                   {"best_accuracy", outcome.best_accuracy},
                   {"best_by", outcome.best_by},
                   {"finished_before", outcome.already_finished},
                   {"export", outcome.exported.string()}});
  return result.dump();
}

fs::path run_path(const po::variables_map& given, const std::string& name) {
  if (given.count("resume") && !resumes_automatically(given)) return given["resume"].as<std::string>();
  return given.count("out") ? fs::path(given["out"].as<std::string>()) : fs::path("runs") / name;
}

// The lead's; the others only know the path. That it may not be is said once, by the lead.
RunFolder open_folder(const po::variables_map& given, const std::string& resolved, const Ranks& ranks,
                      const fs::path& path, bool resume) {
  std::optional<RunFolder> folder;
  std::exception_ptr refusal;
  try {
    if (ranks.lead() && resume) RunFolder::check_recipe(path, resolved);
    folder.emplace(!ranks.lead() ? RunFolder::of_other_rank(path)
                   : resume      ? RunFolder::open(path)
                                 : RunFolder::create(path, given["overwrite"].as<bool>()));
  } catch (const Error&) {
    refusal = std::current_exception();
  }
  if (!ranks.agree(refusal != nullptr)) return std::move(*folder);
  ranks.finish();
  if (!refusal) throw BadInput("");
  std::rethrow_exception(refusal);
}

RunOutcome train_in_folder(const po::variables_map& given, const RunConfig& config,
                           const std::string& resolved, const Ranks& ranks, const fs::path& path) {
  const bool automatic = ranks.restarted() || resumes_automatically(given);
  const bool resume = automatic ? ranks.agree(fs::exists(path)) : given.count("resume") != 0;
  const RunFolder folder = open_folder(given, resolved, ranks, path, resume);
  try {
    return run_training(config, resolved, folder, resume, given["profile"].as<std::int64_t>(), ranks);
  } catch (const Error& error) {
    // Refused before its first step: the corrected command must find the way free.
    const bool refused = dynamic_cast<const BadInput*>(&error) || !fs::exists(folder.metrics());
    if (ranks.lead() && !resume && refused && fs::is_empty(folder.checkpoints())) folder.withdraw();
    throw;
  }
}

int train(const po::variables_map& given, const RunConfig& config, const std::string& resolved) {
  const fs::path path = run_path(given, config.name);
  if (given["overwrite"].as<bool>()) check_sources_are_outside(config, path);
  const Ranks ranks(config);
  RunOutcome outcome;
  try {
    outcome = train_in_folder(given, config, resolved, ranks, path);
    ranks.finish();
  } catch (const std::exception& error) {
    ranks.failed(error.what());
    throw;
  }
  if (given["json"].as<bool>() && ranks.lead()) std::cout << json_text(path, outcome) << "\n";
  if (outcome.signal != 0 && !ranks.lead()) throw Interrupted("", outcome.signal);  // one says it
  if (outcome.signal != 0)
    throw Interrupted(
        fmt::format("stopped by signal {} after step {}, saved; go on with: exfusion-train --resume {}",
                    outcome.signal, outcome.step, path.string()),
        outcome.signal);
  if (outcome.already_finished)
    log_info("{}: the run is finished: {} steps are done", path.string(), outcome.step);
  log_info("test accuracy {:.4f} ({}), {:.4f} (fp32); best {:.4f}, selected on {}", outcome.accuracy,
           config.train.precision, outcome.accuracy_fp32, outcome.best_accuracy, outcome.best_by);
  return 0;
}

// Under a launcher, by one rank.
int print_once(const std::string& text) {
  if (launch_from_environment().rank == 0) std::cout << text;
  return 0;
}

int run(int argc, char** argv) {
  const ProgramOptions program = train_options();
  const po::variables_map given = parse_options(program, argc, argv);
  if (answered(program, given)) return 0;
  if (given["list"].as<bool>()) return list_choices(), 0;
  check_options(given);
  if (const int ranks = ranks_to_start(given)) return run_local_ranks(ranks, without_nproc(argc, argv));
  if (given["check-cluster"].as<bool>() && !given.count("recipe")) return check_cluster({}, "cpu"), 0;
  const auto sets =
      given.count("set") ? given["set"].as<std::vector<std::string>>() : std::vector<std::string>{};
  const bool resume = given.count("resume") && !resumes_automatically(given);
  if (resume) RunFolder::check(given["resume"].as<std::string>());
  Recipe recipe = Recipe::load(
      resume ? given["resume"].as<std::string>() + "/recipe.yaml" : given["recipe"].as<std::string>(), sets);
  const RunConfig config = resume ? parse_resumed(recipe) : parse_run(recipe);
  const std::string resolved = recipe.resolved();
  if (given["check-cluster"].as<bool>()) return check_cluster(config.dist, config.train.device), 0;
  if (given["print-recipe"].as<bool>()) return print_once(resolved);
  const Launch launch = launch_from_environment();
  check_memory(config, launch.world, std::max(1, launch.local_world));
  if (given["dry-run"].as<bool>()) return print_once(plan_text(config));
  return train(given, config, resolved);
}

}  // namespace
}  // namespace exfusion

int main(int argc, char** argv) {
  return exfusion::run_program("exfusion-train", [&] { return exfusion::run(argc, argv); });
}
