// exfusion-compare: one recipe as several arms over several seeds, and what their differences show.
#include <fmt/format.h>

#include <filesystem>
#include <iostream>
#include <sstream>

#include "compare/comparison.h"
#include "compare/picture.h"
#include "compare/report.h"
#include "core/error.h"
#include "core/log.h"
#include "io/files.h"
#include "program.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;
namespace po = boost::program_options;

constexpr const char* kUsage =
    "exfusion-compare RECIPE --seeds N --arms NAME,NAME,... -o DIR [--set key=value]... [--tune "
    "KEY=A,B,...]\n\n"
    "Trains a fused recipe as several arms, each with the same seeds and so on the same order of the same "
    "data, and\n"
    "says what the differences to dense show: comparison.json, comparison.md and comparison.svg in DIR.\n"
    "Ctrl-C saves all runs; the same command goes on. More seeds or arms may be added to the same DIR.\n\n"
    "  exfusion-compare recipes/quickstart.yaml --seeds 3 --arms dense,learned -o runs/first --set "
    "train.epochs=1\n\n"
    "a first look: with 3 seeds nothing can be decided, but it shows how long runs take. The real thing, "
    "each arm\n"
    "with its own learning rate, chosen on 5,000 held-out training images, two runs at a time:\n\n"
    "  exfusion-compare recipes/quickstart.yaml --seeds 12 --arms dense,learned,memory,ema,average,dense_lr2 "
    "\\\n"
    "      --set data.validation=5000 --tune optim.lr=5e-4,1e-3,2e-3 --jobs 2 -o runs/comparison\n\n"
    "Exit codes: 0 done, 1 a run failed (the others are reported), 2 bad input, 130/143 stopped after "
    "saving.\n";

ProgramOptions describe_options() {
  ProgramOptions program{kUsage, po::options_description("Options"), "recipe"};
  const auto text = [](const char* name) { return po::value<std::string>()->value_name(name); };
  const auto count = [](std::int64_t fallback) {
    return po::value<std::int64_t>()->default_value(fallback)->value_name("N");
  };
  auto add = program.options.add_options();
  add("arms", text("NAMES"), "what to compare, separated by commas; see below");
  add("seeds", count(10), "runs of each arm, with seeds from the recipe's on");
  add("out,o", text("DIR"), "the comparison's folder");
  add("set", po::value<std::vector<std::string>>()->composing()->value_name("KEY=VALUE"),
      "override one value of the recipe for all arms; may be repeated");
  add("tune", text("KEY=A,B"), "first choose each arm's own value of a key; needs data.validation");
  add("tune-seeds", count(1), "runs for each value, with other seeds than the comparison's");
  add("jobs", count(1), "runs at a time; the machine's threads are divided among them");
  add("match", po::value<std::string>()->default_value("steps")->value_name("WORDS"),
      "steps, and also flops, time: further runs as long as dense's in training FLOPs or wall clock");
  add("json", po::bool_switch(), "print comparison.json on stdout");
  return program;
}

void print_arms() {
  std::cout << "\nArms (c: a control):\n";
  for (const Arm& arm : all_arms())
    std::cout << fmt::format("  {:<18}{} {}\n", arm.name, arm.control ? "c" : " ", arm.sentence);
}

std::int64_t in_range(const po::variables_map& given, const char* name, std::int64_t low, std::int64_t high) {
  const auto value = given[name].as<std::int64_t>();
  if (value < low || value > high)
    throw UsageError(fmt::format("--{} must be {} to {}, got {}", name, low, high, value));
  return value;
}

ComparisonRequest read_request(const po::variables_map& given) {
  for (const char* name : {"recipe", "arms", "out"}) {
    if (!given.count(name))
      throw UsageError("give a recipe, --arms and -o, the folder for the comparison; see --help");
  }
  ComparisonRequest request;
  request.recipe = given["recipe"].as<std::string>();
  request.arms = given["arms"].as<std::string>();
  request.out = given["out"].as<std::string>();
  if (given.count("set")) request.sets = given["set"].as<std::vector<std::string>>();
  if (given.count("tune")) request.tune = given["tune"].as<std::string>();
  request.seeds = in_range(given, "seeds", 2, kMostComparedSeeds);
  if (!given["tune-seeds"].defaulted() && !request.tune)
    throw UsageError("--tune-seeds says how often each value of --tune is tried; there is no --tune");
  request.tuning_seeds = in_range(given, "tune-seeds", 1, kMostComparedSeeds);
  request.jobs = in_range(given, "jobs", 1, 1024);
  std::istringstream words(given["match"].as<std::string>());
  for (std::string word; std::getline(words, word, ',');) {
    if (word != "steps" && word != "flops" && word != "time")
      throw UsageError("--match " + word + ": choose from steps, flops, time");
    request.match_flops |= word == "flops";
    request.match_time |= word == "time";
  }
  return request;
}

std::string command_line(int argc, char** argv) {
  std::string line = "exfusion-compare";
  for (int i = 1; i < argc; ++i) line += std::string(" ") + argv[i];
  return line;
}

int run(int argc, char** argv) {
  const ProgramOptions program = describe_options();
  const po::variables_map given = parse_options(program, argc, argv);
  if (answered(program, given)) {
    if (given.count("help")) print_arms();
    return 0;
  }
  const ComparisonRequest request = read_request(given);
  ComparisonPlan plan = make_plan(request);
  const ComparisonFolder folder(request.out, plan);
  const Launch launch{fs::canonical("/proc/self/exe").parent_path(),
                      fs::absolute(folder.runs()),
                      plan.recipe,
                      plan.data,
                      plan.root,
                      plan.precision};
  const std::string command = command_line(argc, argv);
  const ComparisonResult result = run_comparison(plan, folder, launch, [&](const ComparisonResult& so_far) {
    write_file(folder.path() / "comparison.json", report_json(plan, so_far, command));
    write_file(folder.path() / "comparison.md", report_markdown(plan, so_far, command));
    write_file(folder.path() / "comparison.svg",
               comparison_svg(so_far.equal_steps, "Comparison of " + plan.recipe));
  });
  for (const ArmSummary& arm : result.equal_steps.arms) log_info("{}: {}", arm.of.arm.name, arm.verdict);
  log_info("written: {}", (folder.path() / "comparison.md").string());
  if (given["json"].as<bool>()) std::cout << report_json(plan, result, command);
  if (result.failures.empty()) return 0;
  throw Failure(fmt::format("{} run{} failed; the same command tries again: {}", result.failures.size(),
                            result.failures.size() == 1 ? "" : "s", fmt::join(result.failures, "; ")));
}

}  // namespace
}  // namespace exfusion

int main(int argc, char** argv) {
  return exfusion::run_program("exfusion-compare", [&] { return exfusion::run(argc, argv); });
}
