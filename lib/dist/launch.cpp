#include "dist/launch.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <limits>
#include <optional>
#include <thread>

#include "core/error.h"
#include "dist/node_list.h"

namespace exfusion {
namespace {

constexpr int kMostRanks = 65536;
constexpr int kAnyNumber = std::numeric_limits<int>::max();
constexpr std::int64_t kFirstSpecialStep = 0xffffff00;  // SLURM's batch, interactive and extern steps

std::optional<std::string> variable(const char* name) {
  const char* value = std::getenv(name);
  return value && *value ? std::optional<std::string>(value) : std::nullopt;
}

std::optional<std::int64_t> whole_number(const std::string& text) {
  std::int64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  return error == std::errc() && stop == end ? std::optional<std::int64_t>(value) : std::nullopt;
}

// `bound`: whence `most`, for the message.
std::optional<int> number(const char* name, int least, int most, const char* bound = nullptr) {
  const std::optional<std::string> text = variable(name);
  if (!text) return std::nullopt;
  const std::optional<std::int64_t> value = whole_number(*text);
  if (!value || *value < least || *value > most)
    throw UsageError(
        most == kAnyNumber
            ? fmt::format("{} is '{}': a whole number of at least {} was expected", name, *text, least)
            : fmt::format("{} is '{}': a whole number from {} to {} was expected{}", name, *text, least, most,
                          bound ? fmt::format(" ({} is {})", bound, most + 1) : ""));
  return static_cast<int>(*value);
}

int needed(const char* name, int least, int most, const char* beside, const char* bound = nullptr) {
  const std::optional<int> value = number(name, least, most, bound);
  if (!value) throw UsageError(fmt::format("{} is set, but {} is not", beside, name));
  return *value;
}

// The address that the variables give, if any; else `otherwise`.
void read_master(Launch& launch, const std::string& otherwise, int port) {
  launch.master_addr = variable("MASTER_ADDR").value_or(otherwise);
  launch.master_port = number("MASTER_PORT", 1, 65535).value_or(port);
}

// For several machines nobody but the user knows where rank 0 runs.
void require_master(const Launch& launch) {
  if (!variable("MASTER_ADDR") && launch.local_world != launch.world)
    throw UsageError(fmt::format(
        "MASTER_ADDR is not set: {} ranks, not known to be all on this machine (LOCAL_WORLD_SIZE), "
        "need the name or address of the machine of rank 0, or 127.0.0.1",
        launch.world));
}

Launch from_plain_variables() {
  Launch launch;
  launch.launcher = variable("TORCHELASTIC_RUN_ID") ? "torchrun" : "environment";
  launch.world = needed("WORLD_SIZE", 1, kMostRanks, "RANK");
  launch.rank = *number("RANK", 0, launch.world - 1, "WORLD_SIZE");
  const bool one_machine = is_loopback(variable("MASTER_ADDR").value_or("")) || launch.world == 1;
  launch.local_world = number("LOCAL_WORLD_SIZE", 1, launch.world).value_or(one_machine ? launch.world : 0);
  require_master(launch);
  read_master(launch, "127.0.0.1", Launch().master_port);
  const std::optional<int> local =
      number("LOCAL_RANK", 0, (launch.local_world ? launch.local_world : launch.world) - 1,
             variable("LOCAL_WORLD_SIZE") ? "LOCAL_WORLD_SIZE" : "WORLD_SIZE");
  if (!local && launch.local_world != launch.world)
    throw UsageError("RANK is set, but LOCAL_RANK is not: the number of this process on its machine");
  launch.local_rank = local.value_or(launch.rank);
  launch.agent_store = variable("TORCHELASTIC_USE_AGENT_STORE") == "True";
  if (launch.rank == 0) launch.store_fd = number("EXFUSION_STORE_FD", 3, kAnyNumber).value_or(-1);
  return launch;
}

Launch from_mpirun() {
  Launch launch;
  launch.launcher = "mpirun";
  const char* const kRank = "OMPI_COMM_WORLD_RANK";
  launch.world = needed("OMPI_COMM_WORLD_SIZE", 1, kMostRanks, kRank);
  launch.rank = *number(kRank, 0, launch.world - 1, "OMPI_COMM_WORLD_SIZE");
  launch.local_world = needed("OMPI_COMM_WORLD_LOCAL_SIZE", 1, launch.world, kRank);
  launch.local_rank =
      needed("OMPI_COMM_WORLD_LOCAL_RANK", 0, launch.local_world - 1, kRank, "OMPI_COMM_WORLD_LOCAL_SIZE");
  require_master(launch);
  read_master(launch, "127.0.0.1", Launch().master_port);
  return launch;
}

// A batch script has SLURM_NTASKS and SLURM_PROCID too, but is one process: only srun makes a job step.
bool in_job_step() {
  const std::optional<std::string> step = variable("SLURM_STEP_ID");
  const std::optional<std::int64_t> id = whole_number(step.value_or(""));
  return id && *id >= 0 && *id < kFirstSpecialStep && variable("SLURM_PROCID");
}

Launch from_srun() {
  Launch launch;
  launch.launcher = "srun";
  const char* const kProcess = "SLURM_PROCID";
  const std::optional<int> step_tasks = number("SLURM_STEP_NUM_TASKS", 1, kMostRanks);
  launch.world = step_tasks ? *step_tasks : needed("SLURM_NTASKS", 1, kMostRanks, kProcess);
  if (launch.world == 1) return {};
  launch.rank = *number(kProcess, 0, launch.world - 1);
  if (const auto tasks = variable("SLURM_STEP_TASKS_PER_NODE"))
    launch.local_world =
        tasks_of_node("SLURM_STEP_TASKS_PER_NODE", *tasks, needed("SLURM_NODEID", 0, kMostRanks, kProcess));
  else
    launch.local_world = number("SLURM_NTASKS_PER_NODE", 1, launch.world).value_or(0);
  launch.local_rank =
      needed("SLURM_LOCALID", 0, (launch.local_world ? launch.local_world : launch.world) - 1, kProcess);

  const char* const kLists[] = {"SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"};
  std::string first;
  for (const char* list : kLists) {
    const auto nodes = first.empty() ? variable(list) : std::nullopt;
    if (!nodes) continue;
    const std::vector<std::string> hosts = parse_node_list(list, *nodes);
    first = hosts.size() == 1 ? "127.0.0.1" : hosts[0];
  }
  if (first.empty() && !variable("MASTER_ADDR"))
    throw UsageError(fmt::format("{} is set, but neither SLURM_STEP_NODELIST nor MASTER_ADDR is", kProcess));
  // Steps that run side by side on one machine want ports of their own; below Linux's range for clients.
  const std::int64_t job = number("SLURM_JOB_ID", 0, kAnyNumber).value_or(0);
  const std::int64_t step = *whole_number(*variable("SLURM_STEP_ID"));
  read_master(launch, first, static_cast<int>(15000 + (job * 16 + step) % 15000));
  return launch;
}

Launch from_launcher() {
  if (variable("RANK")) return from_plain_variables();
  // Before srun: mpirun inside of a SLURM job starts its daemons by srun.
  if (variable("OMPI_COMM_WORLD_RANK")) return from_mpirun();
  if (in_job_step()) return from_srun();
  if (const auto world = number("WORLD_SIZE", 1, kMostRanks); world.value_or(1) > 1)
    throw UsageError(fmt::format("WORLD_SIZE is {}, but RANK is not set", *world));
  return {};
}

}  // namespace

Launch launch_from_environment() {
  Launch launch = from_launcher();
  launch.restarts = number("TORCHELASTIC_RESTART_COUNT", 0, 1'000'000).value_or(0) +
                    number("SLURM_RESTART_COUNT", 0, 1'000'000).value_or(0);
  return launch;
}

bool is_loopback(const std::string& host) {
  return host == "localhost" || host == "localhost.localdomain" || host == "::1" || host.starts_with("127.");
}

std::string rank_names(const std::vector<int>& ranks) {
  std::vector<std::string> spans;
  for (std::size_t first = 0, last; first < ranks.size(); first = last) {
    for (last = first + 1; last < ranks.size() && ranks[last] == ranks[last - 1] + 1;) ++last;
    spans.push_back(last - first > 1 ? fmt::format("{}-{}", ranks[first], ranks[last - 1])
                                     : std::to_string(ranks[first]));
  }
  return fmt::format("rank{} {}", ranks.size() == 1 ? "" : "s", fmt::join(spans, ", "));
}

RankThreads threads_of_rank(std::int64_t asked, const Launch& launch) {
  if (asked > 0) return {static_cast<int>(asked), "dist.threads"};
  // OpenMP allows a list, one number per level of nesting.
  const std::string openmp = variable("OMP_NUM_THREADS").value_or("");
  const auto first = whole_number({openmp.begin(), std::find(openmp.begin(), openmp.end(), ',')});
  if (first && *first >= 1 && *first <= 1024)
    return {static_cast<int>(*first),
            fmt::format("OMP_NUM_THREADS={}{}", openmp,
                        launch.launcher == "torchrun" && *first == 1
                            ? ", which torchrun sets unless you do; dist.threads chooses another number"
                            : "")};
  if (launch.launcher == "srun") {
    if (const auto cores = number("SLURM_CPUS_PER_TASK", 1, 1024))
      return {*cores, fmt::format("SLURM_CPUS_PER_TASK={}", *cores)};
  }
  const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  const int ranks = std::max(1, launch.local_world);
  return {std::max(1, cores / ranks), fmt::format("{} cores for {} local ranks", cores, ranks)};
}

}  // namespace exfusion
