// One rank of a run that only sums, started as by torchrun. Arguments: dist.timeout in ms, steps, and what
// this rank does in step 5: nothing, "throw", "hang" (its training thread sleeps) or "late" (it is done 4 s
// after the others).
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <chrono>
#include <string>
#include <thread>

#include "core/error.h"
#include "dist/connect.h"
#include "dist/watch.h"

namespace exfusion {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr int kFaultStep = 5;

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
  DistConfig config;
  config.timeout = timeout;
  const Connection connection = connect(launch_from_environment(), config, "cpu");
  const Launch& launch = connection.launch;
  Watch watch(connection.store->within("watch"), launch.rank, launch.world, launch.agent_store ? -1 : 0);
  const ProcessGroup& group = connection.group;
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
