#include "compare/folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/error.h"
#include "core/log.h"
#include "io/files.h"
#include "io/json_text.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::uint64_t kPlanLimit = 1 << 20;  // bytes of a plan that is read at all

std::string grid_text(const ComparisonPlan& plan) {
  return plan.grid ? fmt::format("{}={}", plan.grid->key, fmt::join(plan.grid->values, ",")) : "none";
}

json plan_json(const ComparisonPlan& plan) {
  json arms = json::object();
  for (const Arm& arm : plan.arms) arms[arm.name] = arm.sets;
  return {{"format", 1},         {"recipe", plan.resolved}, {"arms", arms},
          {"seeds", plan.seeds}, {"tune", grid_text(plan)}, {"tuning_seeds", plan.tuning_seeds},
          {"steps", plan.steps}, {"threads", plan.threads}, {"matched", plan.matched}};
}

// "" or the first line of the recipe that is another one now.
std::string changed_recipe_line(const std::string& before, const std::string& now) {
  std::istringstream old_text(before), new_text(now);
  for (std::string old_line, new_line;;) {
    const bool more_old = static_cast<bool>(std::getline(old_text, old_line));
    const bool more_new = static_cast<bool>(std::getline(new_text, new_line));
    if (!more_old && !more_new) return "";
    if (more_old != more_new || old_line != new_line)
      return fmt::format("the recipe said '{}' and says '{}'", more_old ? old_line : "(nothing more)",
                         more_new ? new_line : "(nothing more)");
  }
}

std::string difference(const json& old, const ComparisonPlan& plan) {
  if (const std::string line = changed_recipe_line(old.at("recipe").get<std::string>(), plan.resolved);
      !line.empty())
    return line;
  if (old.at("tune").get<std::string>() != grid_text(plan))
    return fmt::format("--tune was {} and is {}", old.at("tune").get<std::string>(), grid_text(plan));
  if (old.at("tuning_seeds").get<std::int64_t>() != plan.tuning_seeds)
    return fmt::format("--tune-seeds was {} and is {}", old.at("tuning_seeds").get<std::int64_t>(),
                       plan.tuning_seeds);
  for (const auto& [name, sets] : old.at("arms").items()) {
    const auto arm = std::ranges::find(all_arms(), name, &Arm::name);
    if (arm == all_arms().end() || json(arm->sets) != sets)
      return fmt::format("the arm {} was {} then", name, sets.dump());
  }
  return "";
}

void take_over(const json& old, ComparisonPlan& plan) {
  for (const auto& [name, sets] : old.at("arms").items()) {
    if (std::ranges::find(plan.arms, name, &Arm::name) != plan.arms.end()) continue;
    log_info("{} was compared before and stays in the comparison", name);
    plan.arms.push_back(*std::ranges::find(all_arms(), name, &Arm::name));
  }
  const auto seeds = old.at("seeds").get<std::int64_t>();
  if (seeds > plan.seeds) log_info("{} seeds were compared before and stay in the comparison", seeds);
  plan.seeds = std::clamp<std::int64_t>(seeds, plan.seeds, kMostComparedSeeds);
  plan.steps = old.at("steps").get<std::int64_t>();
  plan.threads = old.at("threads").get<std::int64_t>();
  plan.matched = old.at("matched").get<decltype(plan.matched)>();
  if (plan.steps < 1 || plan.threads < 1) throw FormatError("steps and threads must be above 0");
}

}  // namespace

ComparisonFolder::ComparisonFolder(const fs::path& path, ComparisonPlan& plan) : path_(path) {
  const fs::path file = path / "plan.json";
  std::error_code error;
  if (fs::exists(file)) {
    lock_.emplace(path);
    try {
      const json old = parse_json_object(read_file(file, kPlanLimit), file.string());
      if (const std::string what = difference(old, plan); !what.empty())
        throw RunFolderError(fmt::format("{}: holds another comparison: {}; give another -o, or remove it",
                                         path.string(), what));
      take_over(old, plan);
    } catch (const json::exception& problem) {
      throw FormatError(fmt::format("{}: not the plan of a comparison ({})", file.string(), problem.what()));
    }
  } else {
    if (fs::exists(path) && !(fs::is_directory(path) && fs::is_empty(path)))
      throw RunFolderError(path.string() + ": exists and holds no comparison; give another -o");
    if (plan.steps == 0) plan.steps = count_steps(plan);
    fs::create_directories(path, error);
    if (error) throw FileError(fmt::format("{}: cannot be made: {}", path.string(), error.message()));
    lock_.emplace(path);
  }
  write_plan(plan);
}

ComparisonFolder::Lock::Lock(const fs::path& path) : file(::open(path.c_str(), O_RDONLY | O_DIRECTORY)) {
  if (file < 0) throw FileError(fmt::format("{}: cannot be opened: {}", path.string(), std::strerror(errno)));
  if (::flock(file, LOCK_EX | LOCK_NB) == 0) return;
  ::close(file);
  throw RunFolderError(path.string() + ": another comparison, or a run that it started, still works here");
}

ComparisonFolder::Lock::~Lock() {
  ::close(file);
}

void ComparisonFolder::write_plan(const ComparisonPlan& plan) const {
  write_file(path_ / "plan.json", plan_json(plan).dump(1) + "\n");
}

}  // namespace exfusion
