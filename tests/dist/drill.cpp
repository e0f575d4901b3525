// One rank of a run that only sums: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT as torchrun gives them,
// ADDRESS of this rank's network. Arguments: the timeout of a collective in ms, steps, and what this rank
// does in step 5: nothing, "throw", "hang" (its training thread sleeps) or "late" (it is done 4 s after the
// others).
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "core/error.h"
#include "dist/gloo.h"
#include "dist/store.h"
#include "dist/watch.h"

namespace exfusion {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr int kFaultStep = 5;

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  if (!value) throw UsageError(fmt::format("{} is not set", name));
  return value;
}

void train(const ProcessGroup& group, Watch& watch, int steps, const std::string& fault) {
  const at::Tensor gradient = at::ones({10000});
  for (int step = 1; step <= steps; ++step) {
    watch.at("forward", step);
    std::this_thread::sleep_for(milliseconds(40));
    if (step == kFaultStep && fault == "throw") throw FileError("metrics.h5: No space left on device");
    watch.at("backward", step);
    if (step == kFaultStep && fault == "hang") std::this_thread::sleep_for(seconds(1000));
    std::this_thread::sleep_for(milliseconds(40));
    Pending sum = group.start_all_reduce(gradient), another = group.start_all_reduce(at::ones({1000}));
    sum.wait();
    another.wait();
    if (step == kFaultStep - 1) fmt::print("runs\n");
    std::fflush(stdout);
  }
}

void run(milliseconds timeout, int steps, const std::string& fault) {
  at::set_num_threads(1);
  const int rank = std::stoi(variable("RANK")), world = std::stoi(variable("WORLD_SIZE"));
  c10d::TCPStoreOptions options;
  options.port = static_cast<std::uint16_t>(std::stoi(variable("MASTER_PORT")));
  const bool agent_store = std::getenv("TORCHELASTIC_USE_AGENT_STORE");  // somebody else serves it
  options.isServer = rank == 0 && !agent_store;
  options.waitWorkers = !agent_store;
  options.numWorkers = static_cast<std::size_t>(world);
  options.timeout = seconds(60);
  const Store store(c10::make_intrusive<c10d::TCPStore>(variable("MASTER_ADDR"), options).release());
  const ProcessGroup group(
      make_gloo(store.within("gloo").native(), rank, world, timeout, "", variable("ADDRESS")));
  Watch watch(store.within("watch"), rank, world, agent_store ? -1 : 0);
  group.observe(&watch);
  try {
    train(group, watch, steps, fault);
    if (fault == "late") std::this_thread::sleep_for(seconds(4));
    watch.finish();
  } catch (const std::exception& error) {
    watch.failed(error.what());
    throw;
  }
}

}  // namespace
}  // namespace exfusion

int main(int count, char** arguments) {
  try {
    exfusion::run(std::chrono::milliseconds(std::stoi(arguments[1])), std::stoi(arguments[2]),
                  count > 3 ? arguments[3] : "");
  } catch (const std::exception& error) {
    fmt::print(stderr, "drill: {}\n", error.what());
    return 1;
  }
  return 0;
}
