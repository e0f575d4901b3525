// Question: what does fusion add to our own dense training step, in time and in memory?
// Command: ./dev bench step
// Arms of one case (model, batch, precision) take turns step by step in one process, on made-up images. With
// --serve another process decides whose turn it is: peers.py interleaves PyTorch's steps with these.
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <iostream>
#include <numeric>
#include <random>
#include <sstream>

#include "arms.h"
#include "bench.h"
#include "core/error.h"
#include "train/cost.h"
#include "train/step.h"

namespace exfusion {
namespace {

namespace po = boost::program_options;
using Json = nlohmann::ordered_json;

constexpr const char* kUsage =
    "bench_step [--models LIST] [--precisions LIST] [--arms LIST] [--memory] [--set key=value]...\n\n"
    "Milliseconds of a training step and peak memory, fused against dense. An arm is `dense` or WEIGHTS:N,\n"
    "as learned:4. Peak memory is measured first, each arm in a process of its own.\n";

constexpr const char* kArms = "dense,static:4,static:8,learned:4,learned:8,memory:4,memory:8";

struct Case {
  BenchModel model;
  std::int64_t batch;
  std::string precision;
  std::vector<std::string> arms, sets;  // sets: of the command line
  std::string name(const std::string& arm) const {
    return fmt::format("step/{}/b{}/{}/{}", model.name, batch, row_name(arm), precision);
  }
};

struct Arm {
  std::string name;
  RunConfig config;
  TrainingState state;
  std::vector<double> milliseconds;
};

RunConfig config_of(const Case& given, const std::string& arm) {
  return arm_config(given.model, given.batch, given.precision, arm, given.sets);
}

Arm make_arm(const Case& given, const std::string& name) {
  Arm arm{.name = name, .config = config_of(given, name)};
  arm.state = make_training_state(arm.config);
  return arm;
}

double timed_step(Arm& arm, const Batch& batch) {
  return milliseconds([&] { train_step(arm.config, arm.state, batch, 1'000'000, 1'000'000); });
}

// Bytes after two steps of a process that does nothing else, and what the state should take.
Json memory_of_this_process(const Case& given, const std::string& name) {
  const Batch batch = first_batch(config_of(given, name));
  const double before = status_bytes("VmRSS");
  Arm arm = make_arm(given, name);
  double weights = static_cast<double>(arm.state.parameters->values().nbytes());
  const double gradients = weights;
  double moments = 2.0 * weights;
  for (const ExpertBank& bank : arm.state.banks) {
    for (const at::Tensor& tensor : bank.expert_tensors()) {
      const auto experts = static_cast<double>(tensor.nbytes());
      weights += experts;
      moments += 2.0 * experts - 2.0 * experts / static_cast<double>(bank.experts());
    }
  }
  const at::Tensor rounded = arm.state.parameters->bf16_values();
  const double copies = rounded.defined() ? static_cast<double>(rounded.nbytes()) : 0.0;
  const double formula = training_cost(arm.config, arm.state).state_bytes;
  timed_step(arm, batch), timed_step(arm, batch);
  return {{"weights_MB", weights / 1e6},
          {"gradients_MB", gradients / 1e6},
          {"moments_MB", moments / 1e6},
          {"bf16_MB", copies / 1e6},
          {"state_MB", formula / 1e6},
          {"before_MB", before / 1e6},
          {"peak_MB", status_bytes("VmHWM") / 1e6}};
}

// A process cannot un-peak, so each arm has one: forked before this one starts threads or allocates tensors.
Json memory_in_a_child(const Case& given, const std::string& arm) {
  std::array<int, 2> ends{};
  if (pipe(ends.data()) != 0) throw Failure("no pipe for a child process");
  const pid_t child = fork();
  if (child < 0) throw Failure("no child process");
  if (child == 0) {
    const int code = run_program("bench_step", [&] {
      const std::string text = memory_of_this_process(given, arm).dump();
      return write(ends[1], text.data(), text.size()) == static_cast<ssize_t>(text.size()) ? 0 : 1;
    });
    _exit(code);
  }
  close(ends[1]);
  std::string text;
  std::array<char, 512> piece{};
  for (ssize_t got = 0; (got = read(ends[0], piece.data(), piece.size())) > 0;)
    text.append(piece.data(), static_cast<std::size_t>(got));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 2) throw UsageError("no memory of " + given.name(arm));
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) throw Failure("no memory of " + given.name(arm));
  return Json::parse(text);
}

// Rows NAME/memory: peak memory over dense's, without a bar.
std::vector<BenchRow> memory_rows(const Case& given) {
  std::vector<BenchRow> rows;
  double base = 0.0;
  for (const std::string& arm : given.arms) {
    const Json memory = memory_in_a_child(given, arm);
    const double peak = memory["peak_MB"].get<double>();
    if (rows.empty()) base = peak;
    BenchRow row{.name = given.name(arm) + "/memory", .samples = {peak / base}};
    for (const auto& [name, value] : memory.items()) row.measured.emplace_back(name, value.get<double>());
    rows.push_back(std::move(row));
  }
  return rows;
}

void time_case(BenchReport& report, const Case& given, int rounds) {
  std::vector<Arm> arms;
  for (const std::string& name : given.arms) arms.push_back(make_arm(given, name));
  const Batch batch = first_batch(arms.front().config);
  std::vector<std::size_t> order(arms.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::mt19937 random;
  for (int round = 0; round <= rounds; ++round) {
    std::ranges::shuffle(order, random);  // no arm always follows the one that fills the cache
    for (const std::size_t i : order) {
      const double time = timed_step(arms[i], batch);
      if (round > 0) arms[i].milliseconds.push_back(time);
    }
  }
  const std::vector<double>& base = arms.front().milliseconds;
  for (const Arm& arm : arms) {
    if (&arm == &arms.front()) continue;
    std::vector<double> ratios, added;
    for (std::size_t i = 0; i < base.size(); ++i) {
      ratios.push_back(arm.milliseconds[i] / base[i]);
      added.push_back(arm.milliseconds[i] - base[i]);
    }
    report.add({.name = given.name(arm.name),
                .samples = ratios,
                .measured = {{"ms", median(arm.milliseconds)},
                             {arms.front().name + "_ms", median(base)},
                             {"added_ms", median(added)}}});
  }
}

// One line of JSON when ready; then for each line "ARM STEPS" of stdin the milliseconds of a step, averaged
// over STEPS in a row, and the peak memory so far in MB.
int serve(const Case& given) {
  std::vector<Arm> arms;
  for (const std::string& name : given.arms) arms.push_back(make_arm(given, name));
  const Batch batch = first_batch(arms.front().config);
  for (Arm& arm : arms) timed_step(arm, batch);
  std::cout << Json{{"versions", bench_versions()}, {"threads", at::get_num_threads()}}.dump() << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string name, steps;
    words >> name >> steps;
    const auto count = parse_number("serve", steps, 1, 1'000'000);
    const auto arm = std::ranges::find(arms, name, &Arm::name);
    if (arm == arms.end()) throw UsageError("--serve: no arm " + name);
    double time = 0.0;
    for (std::int64_t i = 0; i < count; ++i) time += timed_step(*arm, batch);
    std::cout << time / static_cast<double>(count) << " " << status_bytes("VmHWM") / 1e6 << std::endl;
  }
  return 0;
}

ProgramOptions describe_options() {
  ProgramOptions program{kUsage, po::options_description("Options"), ""};
  program.options.add_options()(
      "models", po::value<std::string>()->default_value("vit_s,quickstart")->value_name("LIST"),
      "vit_s, vit_ti, quickstart")("batch", po::value<int>()->value_name("N"),
                                   "images of a step (default: 64, quickstart 128)")(
      "precisions", po::value<std::string>()->default_value("fp32,bf16")->value_name("LIST"), "fp32, bf16")(
      "arms", po::value<std::string>()->default_value(kArms, "all")->value_name("LIST"),
      "the first is what the others are compared with; all: dense, and static, learned, memory with 4 and 8")(
      "set", po::value<std::vector<std::string>>()->composing()->value_name("KEY=VALUE"),
      "a key of the recipe, for every arm")("memory", po::bool_switch(), "peak memory only, no times")(
      "serve", po::bool_switch(), "steps on demand: lines \"ARM STEPS\" on stdin; one model and precision");
  add_threads_option(program);
  add_bench_options(program, 50);
  return program;
}

std::vector<Case> parse_cases(const po::variables_map& given) {
  std::vector<Case> cases;
  const auto arms = split_list("arms", given["arms"].as<std::string>());
  const auto sets =
      given.count("set") ? given["set"].as<std::vector<std::string>>() : std::vector<std::string>();
  const int batch = given.count("batch") ? given["batch"].as<int>() : 0;
  if (given.count("batch") && batch < 1) throw UsageError("--batch must be at least 1");
  for (const std::string& name : split_list("models", given["models"].as<std::string>())) {
    const BenchModel& model = bench_model(name);
    for (const std::string& precision : split_list("precisions", given["precisions"].as<std::string>()))
      cases.push_back({model, batch > 0 ? batch : model.batch, precision, arms, sets});
  }
  for (const Case& one : cases) {
    for (const std::string& arm : arms) config_of(one, arm);  // refused now rather than after an hour
  }
  return cases;
}

int run(int argc, char** argv) {
  const ProgramOptions program = describe_options();
  const po::variables_map given = parse_options(program, argc, argv);
  if (answered(program, given)) return 0;
  const std::vector<Case> cases = parse_cases(given);
  const BenchOptions options = read_bench_options(given);
  if (given["serve"].as<bool>()) {
    if (cases.size() != 1) throw UsageError("--serve takes one model and one precision");
    return serve(cases.front());
  }
  std::vector<BenchRow> memory;
  for (const Case& one : cases) {
    for (BenchRow& row : memory_rows(one)) memory.push_back(std::move(row));
  }
  BenchReport report(options);
  for (const BenchRow& row : memory) report.add(row);
  if (given["memory"].as<bool>()) return 0;
  for (const Case& one : cases) time_case(report, one, options.rounds);
  return 0;
}

}  // namespace
}  // namespace exfusion

int main(int argc, char** argv) {
  return exfusion::run_program("bench_step", [&] { return exfusion::run(argc, argv); });
}
