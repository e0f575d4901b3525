// exfusion-train: trains what a recipe describes, or goes on with an earlier run.
#include <fmt/format.h>

#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/error.h"
#include "core/last_words.h"
#include "core/log.h"
#include "dist/cluster_check.h"
#include "dist/connect.h"
#include "dist/launch.h"
#include "dist/local_ranks.h"
#include "program.h"
#include "train/loop.h"
#include "train/plan.h"
#include "train_command.h"
#include "train_options.h"

namespace exfusion {
namespace {
namespace fs = std::filesystem;
namespace po = boost::program_options;

constexpr const char* kProgram = "exfusion-train";

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

// The lead's; the others only know the path. That it may not be is said once, by the lead.
RunFolder open_folder(const po::variables_map& given, const std::string& resolved, const Ranks& ranks,
                      const fs::path& path, bool automatic, bool resume) {
  const bool overwrite = given["overwrite"].as<bool>() || (automatic && RunFolder::is_unused(path));
  std::optional<RunFolder> folder;
  std::exception_ptr refusal;
  try {
    if (ranks.lead() && resume) RunFolder::check_recipe(path, resolved);
    folder.emplace(!ranks.lead() ? RunFolder::of_other_rank(path)
                   : resume      ? RunFolder::open(path)
                                 : RunFolder::create(path, overwrite));
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
  const bool resume =
      automatic ? ranks.agree(fs::exists(path) && !RunFolder::is_unused(path)) : given.count("resume") != 0;
  const RunFolder folder = open_folder(given, resolved, ranks, path, automatic, resume);
  try {
    return run_training(config, resolved, folder, resume, given["profile"].as<std::int64_t>(), ranks);
  } catch (const Error& error) {
    // Refused before its first step: the corrected command must find the way free.
    const bool refused = dynamic_cast<const BadInput*>(&error) || !fs::exists(folder.metrics());
    if (ranks.lead() && !resume && refused && fs::is_empty(folder.checkpoints())) folder.withdraw();
    throw;
  }
}

int train(const po::variables_map& given, const TrainCommand& command) {
  const RunConfig& config = *command.config;
  const fs::path path = run_path(given, config.name);
  const Ranks ranks(config, command.fields());
  RunOutcome outcome;
  try {
    outcome = train_in_folder(given, config, command.resolved, ranks, path);
    ranks.finish();
  } catch (const std::exception& error) {
    ranks.failed(error.what());
    throw;
  }
  if (given["json"].as<bool>() && ranks.lead()) std::cout << json_text(path, outcome) << "\n";
  if (outcome.signal != 0 && !ranks.lead()) throw Interrupted("", outcome.signal);  // one says it
  if (outcome.signal != 0)
    throw Interrupted(fmt::format("stopped by signal {} after step {}, saved; go on with: {}", outcome.signal,
                                  outcome.step, ranks.resume_command(path)),
                      outcome.signal);
  if (outcome.already_finished)
    log_info("{}: the run is finished: {} steps are done", path.string(), outcome.step);
  log_info("test accuracy {:.4f} ({}), {:.4f} (fp32); best {:.4f}, selected on {}", outcome.accuracy,
           config.train.precision, outcome.accuracy_fp32, outcome.best_accuracy, outcome.best_by);
  return 0;
}

// What needs one rank alone: the others have only come for the same.
int describe(const TrainCommand& command) {
  const RunConfig& config = *command.config;
  const Launch launch = only_meet(launch_from_environment(), config.dist.timeout, command.fields());
  if (launch.rank != 0) return 0;
  std::cout << (command.purpose == "--dry-run" ? plan_text(config, launch) : command.resolved);
  return 0;
}

int run(int argc, char** argv) {
  const ProgramOptions program = train_options();
  po::variables_map given;
  TrainCommand command;
  try {
    given = parse_options(program, argc, argv);
    if (answered(program, given)) return 0;
    if (given["list"].as<bool>()) return list_choices(), 0;
    check_options(given);
    if (const int ranks = ranks_to_start(given)) return run_local_ranks(ranks, without_nproc(argc, argv));
    command = read_command(given);
  } catch (const Error& error) {  // at once here, and then on the other ranks
    say_last_words(kProgram, error.what());
    could_not_start(error.what());
    throw Error("", error.exit_code);
  }
  const DistConfig dist = command.config ? command.config->dist : DistConfig();
  const std::string device = command.config ? command.config->train.device : "cpu";
  if (given["check-cluster"].as<bool>()) return check_cluster(dist, device, command.fields()), 0;
  if (given["print-recipe"].as<bool>() || given["dry-run"].as<bool>()) return describe(command);
  return train(given, command);
}

}  // namespace
}  // namespace exfusion

int main(int argc, char** argv) {
  return exfusion::run_program(exfusion::kProgram, [&] { return exfusion::run(argc, argv); });
}
