// Question: what do several ranks send, what does sharding leave in each one's memory, and (with --serve, one
// rank of dist.py) how long does a step take them? Command: ./dev bench dist
// Bytes are counted where the collectives are called (ProcessGroup::traffic), with ranks as threads of this
// process; they depend on the model and on the number of ranks, not on the batch.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iostream>
#include <map>
#include <mutex>
#include <set>
#include <sstream>

#include "arms.h"
#include "bench.h"
#include "core/error.h"
#include "dist/connect.h"
#include "dist/ranks.h"
#include "nn/ffn.h"
#include "train/memory.h"
#include "train/step.h"

namespace exfusion {
namespace {

namespace po = boost::program_options;

constexpr const char* kUsage =
    "bench_dist [--models LIST] [--memory-models LIST]\n"
    "bench_dist --serve [--models NAME] [--batch N] [--precision P] [--arms LIST]\n\n"
    "Bytes that ranks send in a step, and bytes of state in each one's memory. With --serve this process is\n"
    "one of several ranks and takes steps on demand. An arm is ARM of bench_step, or ARM/SHARD as\n"
    "learned:4/experts.\n";

constexpr std::array kExperts = {1, 2, 4, 8, 16};
constexpr std::array kWorlds = {2, 3, 4};
constexpr double kShardedBar = 1.02, kMemoryBar = 1.02;

struct Arm {
  RunConfig config;
  TrainingState state;
  Batch batch;
};

RunConfig config_of(const std::string& model, std::int64_t batch, const std::string& precision,
                    const std::string& arm) {
  const auto slash = arm.find('/');
  std::vector<std::string> sets = {"data.train_samples=512"};
  if (slash != std::string::npos) sets.push_back("dist.shard=" + arm.substr(slash + 1));
  return arm_config(bench_model(model), batch, precision, arm.substr(0, slash), sets);
}

Arm make_arm(const RunConfig& config, const ProcessGroup& group) {
  return {config, make_training_state(config, true, group), first_batch(config, group)};
}

StepResult take_step(Arm& arm) {
  return train_step(arm.config, arm.state, arm.batch, 1'000'000, 1'000'000);
}

// ---- bytes ----

struct StepTraffic {
  std::map<std::string, Traffic> of_rank;  // of rank 0, by collective
  double payload = 0.0, calls = 0.0;       // of rank 0: bytes of the tensors
  double wire = 0.0;                       // of all ranks: bytes that leave one of them
};

// Bytes that a rank sends on behalf of a collective with this payload: a ring all_reduce 2 (R - 1) / R of the
// tensor on each rank, a broadcast all of it to R - 1 others (counted by its root), an all_to_all what it is.
double wire_bytes(const std::string& collective, double payload, double world) {
  return collective == "all_reduce"  ? payload * 2.0 * (world - 1.0) / world
         : collective == "broadcast" ? payload * (world - 1.0)
                                     : payload;
}

StepTraffic traffic_of_step(const std::string& model, const std::string& name, int world) {
  StepTraffic result;
  std::mutex mutex;
  with_ranks(world, [&](const ProcessGroup& group) {
    Arm arm = make_arm(config_of(model, 2 * world, "fp32", name), group);
    take_step(arm);
    const auto before = group.traffic();
    take_step(arm);
    const std::scoped_lock lock(mutex);
    for (auto [collective, traffic] : group.traffic()) {
      if (before.contains(collective)) {
        traffic.calls -= before.at(collective).calls;
        traffic.bytes -= before.at(collective).bytes;
      }
      const auto bytes = static_cast<double>(traffic.bytes);
      result.wire += wire_bytes(collective, bytes, world);
      if (group.rank() != 0) continue;
      result.of_rank[collective] = traffic;
      result.payload += bytes;
      result.calls += static_cast<double>(traffic.calls);
    }
  });
  return result;
}

BenchRow traffic_row(const std::string& name, double ratio, Bar side, double bar,
                     const StepTraffic& traffic) {
  BenchRow row{.name = name, .samples = {ratio}, .side = side, .bar = bar};
  for (const auto& [collective, counted] : traffic.of_rank) {
    row.measured.emplace_back(collective + "_calls", counted.calls);
    row.measured.emplace_back(collective + "_bytes", counted.bytes);
  }
  row.measured.emplace_back("wire_bytes", traffic.wire);
  return row;
}

// What `memory` weights send besides: r [N] and the router's gradient [N, dim] of each FFN, in fp32.
double routing_bytes(const std::string& model, int experts) {
  const ViTConfig vit = config_of(model, 2, "fp32", "dense").model.vit;
  return 4.0 * static_cast<double>(vit.depth * (experts + experts * vit.dim));
}

void report_bytes(BenchReport& report, const std::string& model) {
  const auto name = [&](const std::string& arm, int world) {
    return fmt::format("dist/bytes/{}/{}/ranks{}", model, row_name(arm), world);
  };
  const StepTraffic dense = traffic_of_step(model, "dense", 2);
  report.add(traffic_row(name("dense", 2), 1.0, Bar::none, 0.0, dense));
  for (const int n : kExperts) {
    for (const std::string weights : {"static", "learned", "memory"}) {
      const std::string arm = fmt::format("{}:{}", weights, n);
      const StepTraffic fused = traffic_of_step(model, arm, 2);
      const double expected = dense.payload + (weights == "memory" ? routing_bytes(model, n) : 0.0);
      report.add(traffic_row(name(arm, 2), fused.payload / expected, Bar::equal, 1.0, fused));
    }
  }
  for (const int world : kWorlds) {
    for (const std::string arm : {"static:4", "learned:4", "memory:4"}) {
      const StepTraffic whole = traffic_of_step(model, arm, world);
      for (const char* shard : {"/experts", "/all"}) {
        const StepTraffic sharded = traffic_of_step(model, arm + shard, world);
        BenchRow row = traffic_row(name(arm + shard, world), sharded.wire / whole.wire, Bar::at_most,
                                   kShardedBar, sharded);
        row.measured.emplace_back("whole_wire_bytes", whole.wire);
        report.add(row);
      }
    }
  }
}

// ---- memory ----

// Bytes that the tensors keep allocated: a view counts as all of what it looks into, shared storage once.
double allocated(const std::vector<at::Tensor>& tensors) {
  std::set<const void*> seen;
  double bytes = 0.0;
  for (const at::Tensor& tensor : tensors) {
    if (tensor.defined() && seen.insert(tensor.storage().data()).second)
      bytes += static_cast<double>(tensor.storage().nbytes());
  }
  return bytes;
}

void append(std::vector<at::Tensor>& tensors, const TensorParts& parts) {
  for (const TensorPart& part : parts) tensors.push_back(part.values);
}

struct StateBytes {
  double ffn = 0.0, all = 0.0;  // of the fused FFNs: W, G, experts, moments; of everything
  double parameters = 0.0;      // of the fused FFNs
};

StateBytes bytes_of(const TrainingState& state) {
  StateBytes bytes;
  const auto& slots = state.parameters->slots();
  for (std::size_t i = slots.size() - state.banks.size() * kFfnTensors.size(); i < slots.size(); ++i)
    bytes.parameters += static_cast<double>(slots[i].size);
  std::vector<at::Tensor> experts,
      rest = {state.parameters->values(), state.parameters->gradients(), state.parameters->bf16_values()};
  for (const ExpertBank& bank : state.banks) {
    append(experts, bank.expert_parts());
    append(experts, bank.optimizer_parts());
  }
  append(rest, state.dense->parts());
  bytes.ffn = 8.0 * bytes.parameters + allocated(experts);
  bytes.all = allocated(experts) + allocated(rest);
  return bytes;
}

// The state of each rank of 2 experts after a step, on the rank that holds most, over the formula for fp32:
// of an FFN parameter N experts with two moments each in R parts, its fused value and its gradient.
void report_memory(BenchReport& report, const std::string& model) {
  constexpr int kCount = 2;
  for (const int world : {3, 4}) {
    for (const std::string shard : {"experts", "all"}) {
      const std::string arm = fmt::format("learned:{}", kCount);
      const RunConfig config = config_of(model, world, "fp32", arm + "/" + shard);
      StateBytes most;
      std::mutex mutex;
      with_ranks(world, [&](const ProcessGroup& group) {
        Arm stepped = make_arm(config, group);
        take_step(stepped);
        const StateBytes bytes = bytes_of(stepped.state);
        const std::scoped_lock lock(mutex);
        most = {std::max(most.ffn, bytes.ffn), std::max(most.all, bytes.all), bytes.parameters};
      });
      const double formula = 4.0 * (3.0 * kCount / world + 2.0), stated = state_memory(config, world).total();
      const std::string name =
          fmt::format("dist/memory/{}/{}/{}/ranks{}", model, row_name(arm), shard, world);
      report.add({.name = name,
                  .samples = {most.ffn / most.parameters / formula},
                  .side = Bar::at_most,
                  .bar = kMemoryBar,
                  .measured = {{"bytes_per_parameter", most.ffn / most.parameters},
                               {"formula", formula},
                               {"dense", 16.0},
                               {"ffn_parameters", most.parameters}}});
      report.add({.name = name + "/stated",
                  .samples = {most.all / stated},
                  .side = Bar::at_most,
                  .bar = kMemoryBar,
                  .measured = {{"state_MB", most.all / 1e6}, {"stated_MB", stated / 1e6}}});
    }
  }
}

// ---- steps on demand ----

// This process as the rank that its environment says. For each line "ARM STEPS" of stdin it answers with the
// milliseconds of a step, averaged over STEPS in a row, and how many of them the phase `reduce` takes. The
// arm `alone` is the first of the arms on this rank by itself, with as many samples as the rank has of a
// batch. An arm is made when it is first named.
int serve(const po::variables_map& given) {
  const auto model = given["models"].as<std::string>(), precision = given["precision"].as<std::string>();
  const auto names = split_list("arms", given["arms"].as<std::string>());
  const std::int64_t batch = given["batch"].as<int>();
  const Connection connection =
      connect(launch_from_environment(), config_of(model, batch, precision, names.front()).dist, "cpu");
  const ProcessGroup& group = connection.group;
  std::map<std::string, Arm> arms;
  const auto arm_of = [&](const std::string& name) -> Arm& {
    if (const auto found = arms.find(name); found != arms.end()) return found->second;
    if (name == "alone")
      return arms
          .emplace(name, make_arm(config_of(model, batch / group.world(), precision, names.front()), {}))
          .first->second;
    if (std::ranges::find(names, name) == names.end()) throw UsageError("--serve: no arm " + name);
    return arms.emplace(name, make_arm(config_of(model, batch, precision, name), group)).first->second;
  };
  std::cout << nlohmann::ordered_json{{"versions", bench_versions()}}.dump() << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string name, steps;
    words >> name >> steps;
    const auto count = parse_number("serve", steps, 1, 1'000'000);
    Arm& arm = arm_of(name);
    double reduce = 0.0;
    const double time = milliseconds([&] {
      for (std::int64_t i = 0; i < count; ++i)
        reduce += 1e3 * take_step(arm).phases[static_cast<std::size_t>(Phase::reduce)];
    });
    const auto divisor = static_cast<double>(count);
    std::cout << time / divisor << " " << reduce / divisor << std::endl;
  }
  return 0;
}

ProgramOptions describe_options() {
  ProgramOptions program{kUsage, po::options_description("Options"), ""};
  program.options.add_options()("models",
                                po::value<std::string>()->default_value("quickstart")->value_name("LIST"),
                                "vit_s, vit_ti, quickstart")(
      "memory-models", po::value<std::string>()->default_value("vit_s")->value_name("LIST"),
      "whose memory is measured")("serve", po::bool_switch(),
                                  "steps on demand: lines \"ARM STEPS\" on stdin")(
      "batch", po::value<int>()->default_value(128)->value_name("N"), "images of a step of all ranks")(
      "precision", po::value<std::string>()->default_value("fp32")->value_name("P"), "fp32, bf16")(
      "arms", po::value<std::string>()->default_value("dense")->value_name("LIST"), "arms to serve");
  add_bench_options(program, 1);
  return program;
}

int run(int argc, char** argv) {
  const ProgramOptions program = describe_options();
  const po::variables_map given = parse_options(program, argc, argv);
  if (answered(program, given)) return 0;
  const BenchOptions options = read_bench_options(given);
  at::set_num_threads(1);
  if (given["serve"].as<bool>()) return serve(given);
  const auto models = split_list("models", given["models"].as<std::string>()),
             memory_models = split_list("memory-models", given["memory-models"].as<std::string>());
  for (const std::string& model : models) bench_model(model);
  for (const std::string& model : memory_models) bench_model(model);
  BenchReport report(options);
  for (const std::string& model : models) report_bytes(report, model);
  for (const std::string& model : memory_models) report_memory(report, model);
  return 0;
}

}  // namespace
}  // namespace exfusion

int main(int argc, char** argv) {
  return exfusion::run_program("bench_dist", [&] { return exfusion::run(argc, argv); });
}
