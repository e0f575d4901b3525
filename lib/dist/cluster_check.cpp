#include "dist/cluster_check.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <thread>
#include <utility>
#include <vector>

#include "core/duration.h"
#include "core/error.h"
#include "dist/agreement.h"
#include "dist/connect.h"

namespace exfusion {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kPatience(60);
constexpr std::chrono::seconds kRollCall(5);
constexpr std::int64_t kSizes[] = {1 << 10, 32 << 10, 1 << 20, 4 << 20,
                                   16 << 20};  // bytes; 4 MiB: about a unit of gradients

// One collective on a tensor [n] of float32: what it holds before, the call, and what it must hold after.
struct Trial {
  const char* name;
  std::function<at::Tensor(const at::Tensor& pattern)> before;
  std::function<void(const at::Tensor&)> call;
  std::function<at::Tensor(const at::Tensor& pattern)> after;
};

// The parts of [0, size) by rank: of sizes that differ by one at most.
std::vector<std::int64_t> cuts_of(std::int64_t size, int world) {
  std::vector<std::int64_t> cuts;
  for (int rank = 0; rank <= world; ++rank) cuts.push_back(size * rank / world);
  return cuts;
}

// Every rank sends its tensor's first element per rank ... to everyone: part q of rank r arrives as part r at
// q.
void exchange(const ProcessGroup& group, const at::Tensor& tensor) {
  const std::int64_t part = tensor.numel() / group.world();
  const std::vector<std::int64_t> sizes(static_cast<std::size_t>(group.world()), part);
  const at::Tensor input = tensor.narrow(0, 0, part * group.world()).clone();
  group.start_all_to_all(tensor.narrow(0, 0, part * group.world()), sizes, input, sizes).wait();
}

// From rank to rank and back to rank 0; everyone adds one.
void ring(const ProcessGroup& group, const at::Tensor& tensor) {
  const int rank = group.rank(), world = group.world();
  if (rank > 0) group.receive(tensor, rank - 1);
  tensor.add_(1);
  group.send(tensor, (rank + 1) % world);
  if (rank == 0) group.receive(tensor, world - 1);
}

std::vector<Trial> trials(const ProcessGroup& group) {
  const int rank = group.rank(), world = group.world();
  const auto same = [](const at::Tensor& pattern) { return pattern.clone(); };
  // Part i of what a rank holds: number `value(i)` everywhere in it.
  const auto parts = [world](const at::Tensor& pattern, const std::function<int(int)>& value) {
    const at::Tensor result = pattern.clone();
    const std::int64_t part = pattern.numel() / world;
    for (int i = 0; i < world; ++i) result.narrow(0, i * part, part).fill_(value(i));
    return result;
  };
  return {
      {"all_reduce", [=](const at::Tensor& p) { return p * (rank + 1); },
       [&group](const at::Tensor& t) { group.all_reduce(t); },
       [=](const at::Tensor& p) { return p * (world * (world + 1) / 2); }},
      {"all_to_all", [=](const at::Tensor& p) { return parts(p, [=](int to) { return rank * world + to; }); },
       [&group](const at::Tensor& t) { exchange(group, t); },
       [=](const at::Tensor& p) { return parts(p, [=](int from) { return from * world + rank; }); }},
      {"broadcast", [=](const at::Tensor& p) { return p * (rank + 1); },
       [&group, world](const at::Tensor& t) { group.broadcast(t, world - 1); },
       [=](const at::Tensor& p) { return p * world; }},
      {"all_gather",
       [=](const at::Tensor& p) {
         const std::vector<std::int64_t> cuts = cuts_of(p.numel(), world);
         const auto r = static_cast<std::size_t>(rank);
         const at::Tensor result = at::zeros_like(p);
         result.narrow(0, cuts[r], cuts[r + 1] - cuts[r]) += p.narrow(0, cuts[r], cuts[r + 1] - cuts[r]);
         return result;
       },
       [&group, world](const at::Tensor& t) { group.all_gather(t, cuts_of(t.numel(), world)); }, same},
      {"send, receive", same, [&group](const at::Tensor& t) { ring(group, t); },
       [=](const at::Tensor& p) { return p + (rank == 0 ? world : rank + 1); }}};
}

// Throws on every rank when the values of one are wrong.
void check_values(const ProcessGroup& group, const char* name, std::int64_t bytes, bool right) {
  std::vector<double> wrong(static_cast<std::size_t>(group.world()));
  wrong[static_cast<std::size_t>(group.rank())] = right ? 0.0 : 1.0;
  group.sum(wrong);
  std::vector<std::size_t> ranks;
  for (std::size_t rank = 0; rank < wrong.size(); ++rank)
    if (wrong[rank] != 0.0) ranks.push_back(rank);
  if (!ranks.empty())
    throw DistributedError(
        fmt::format("{} of {} bytes gave wrong values on rank {}", name, bytes, fmt::join(ranks, ", rank ")));
}

// Median seconds of a collective.
double measure(const ProcessGroup& group, const Trial& trial, std::int64_t bytes, const std::string& device) {
  const at::Tensor pattern =
      at::arange(bytes / 4, at::device(at::Device(device)).dtype(at::kFloat)).remainder_(7);
  const at::Tensor expected = trial.after(pattern);
  std::vector<double> times;
  bool right = true;
  for (int round = 0; round < (bytes > (1 << 20) ? 3 : 9); ++round) {
    const at::Tensor tensor = trial.before(pattern);
    group.barrier();
    const auto start = Clock::now();
    trial.call(tensor);
    tensor.narrow(0, 0, 1).cpu();  // on a GPU: waits until it is done
    times.push_back(seconds_since(start));
    right = right && at::equal(tensor, expected);
  }
  check_values(group, trial.name, bytes, right);
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

std::string size_text(std::int64_t bytes) {
  return bytes < (1 << 20) ? fmt::format("{} KiB", bytes >> 10) : fmt::format("{} MiB", bytes >> 20);
}

void print_ranks(const Connection& connection, const RankThreads& threads) {
  const auto table = [&](const std::vector<std::string>& lines) {
    return fmt::format("{:>5}  {:<24}{:>9}{:>9}\n{}\n", "rank", "host", "process", "threads",
                       fmt::join(lines, "\n"));
  };
  const std::string mine =
      fmt::format("{:>5}  {:<24}{:>9}{:>9}", connection.launch.rank, host_name(), getpid(), threads.count);
  const std::string ranks =
      connection.store ? meet(*connection.store, connection.launch, "cluster check", mine, kPatience, table)
                       : table({mine});
  if (connection.launch.rank == 0) fmt::print("{}", ranks);
}

void measure_all(const Connection& connection, const std::string& device) {
  const ProcessGroup& group = connection.group;
  const auto say = [&](const std::string& text) {
    if (group.rank() != 0) return;
    fmt::print("{}", text);
    std::fflush(stdout);
  };
  say(fmt::format("\n{}, MB/s of the tensor (median)\n{:<16}", connection.backend, ""));
  for (const std::int64_t bytes : kSizes) say(fmt::format("{:>10}", size_text(bytes)));
  for (const Trial& trial : trials(group)) {
    say(fmt::format("\n{:<16}", trial.name));
    for (const std::int64_t bytes : kSizes)
      say(fmt::format("{:>10.1f}", static_cast<double>(bytes) / measure(group, trial, bytes, device) / 1e6));
  }
  const auto start = Clock::now();
  for (int round = 0; round < 20; ++round) group.barrier();
  say(fmt::format("\n{:<16}{:>10.3f} ms\n", "barrier",
                  std::chrono::duration<double, std::milli>(Clock::now() - start).count() / 20));
}

// Gloo's errors name an address at best: every rank that still runs says so in the store. How many do not,
// and who.
std::pair<int, std::string> roll_call(const Connection& connection) {
  const Launch& launch = connection.launch;
  try {
    connection.store->set(fmt::format("answers/{}", launch.rank), "1");
    const auto until = Clock::now() + kRollCall;
    std::vector<std::string> silent;
    for (int rank = 0; rank < launch.world; ++rank) {
      const std::string key = fmt::format("answers/{}", rank);
      while (!connection.store->get(key) && Clock::now() < until)
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
      if (!connection.store->get(key))
        silent.push_back(
            fmt::format("rank {} on host {}", rank, connection.hosts[static_cast<std::size_t>(rank)]));
    }
    return {static_cast<int>(silent.size()), silent.empty()
                                                 ? "all ranks still answer"
                                                 : fmt::format("no answer from {}", fmt::join(silent, ", "))};
  } catch (const DistributedError&) {
    return {0, no_answer_from_store(launch)};
  }
}

}  // namespace

void check_cluster(DistConfig config, const std::string& device, const Fields& purpose) {
  config.timeout = std::min<std::chrono::milliseconds>(config.timeout, kPatience);
  const Connection connection = connect(launch_from_environment(), config, device, purpose);
  const RankThreads threads = threads_of_rank(config.threads, connection.launch);
  at::set_num_threads(threads.count);
  print_ranks(connection, threads);
  if (connection.group.alone()) {
    fmt::print("one rank: there is nothing to connect; start it by --nproc, torchrun, srun or mpirun\n");
    return;
  }
  try {
    const std::string place =
        device == "cuda" ? fmt::format("cuda:{}", connection.launch.local_rank) : device;
    measure_all(connection, place);
  } catch (const DistributedError& error) {
    if (connection.launch.rank == 0) fmt::print("\n");
    std::fflush(stdout);
    const auto [silent, answer] = roll_call(connection);
    connection.group.close();
    leave(*connection.store, connection.launch, silent);
    throw DistributedError(fmt::format("{}; {}", answer, error.what()));
  }
  leave(*connection.store, connection.launch);
}

}  // namespace exfusion
