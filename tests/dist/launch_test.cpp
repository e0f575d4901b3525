#include "dist/launch.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "core/error.h"

namespace exfusion {
namespace {

using Variables = std::map<std::string, std::string>;

constexpr const char* kFamilies[] = {"SLURM_", "OMPI_", "TORCHELASTIC_", "EXFUSION_",       "MASTER_",
                                     "LOCAL_", "RANK=", "WORLD_SIZE=",   "OMP_NUM_THREADS="};

// The environment holds these variables of launchers and no others.
void set_launcher(const Variables& variables) {
  std::vector<std::string> names;
  for (char** entry = environ; *entry; ++entry) {
    const std::string text = *entry;
    if (std::any_of(std::begin(kFamilies), std::end(kFamilies),
                    [&](const char* f) { return text.starts_with(f); }))
      names.push_back(text.substr(0, text.find('=')));
  }
  for (const std::string& name : names) unsetenv(name.c_str());
  for (const auto& [name, value] : variables) setenv(name.c_str(), value.c_str(), 1);
}

Launch launch_of(const Variables& variables) {
  set_launcher(variables);
  const Launch launch = launch_from_environment();
  set_launcher({});
  return launch;
}

std::string launch_complaint(Variables variables, const Variables& changes) {
  for (const auto& [name, value] : changes) variables[name] = value;
  try {
    launch_of(variables);
  } catch (const UsageError& error) {
    set_launcher({});
    return error.what();
  }
  return "nothing";
}

// What torchrun of PyTorch 2.13 sets on rank 3 of 2 x 2.
const Variables kTorchrun = {{"RANK", "3"},
                             {"WORLD_SIZE", "4"},
                             {"LOCAL_RANK", "1"},
                             {"LOCAL_WORLD_SIZE", "2"},
                             {"MASTER_ADDR", "node7"},
                             {"MASTER_PORT", "41234"},
                             {"TORCHELASTIC_RUN_ID", "none"},
                             {"TORCHELASTIC_RESTART_COUNT", "2"},
                             {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                             {"OMP_NUM_THREADS", "1"}};

// What srun -N2 -n3 of SLURM 22.05 sets on the last task.
const Variables kSrun = {{"SLURM_PROCID", "2"},
                         {"SLURM_NTASKS", "3"},
                         {"SLURM_STEP_NUM_TASKS", "3"},
                         {"SLURM_LOCALID", "0"},
                         {"SLURM_NODEID", "1"},
                         {"SLURM_STEP_ID", "0"},
                         {"SLURM_JOB_ID", "4217"},
                         {"SLURM_STEP_NODELIST", "n[07-08]"},
                         {"SLURM_JOB_NODELIST", "n[01-08]"},
                         {"SLURM_STEP_TASKS_PER_NODE", "2,1"}};

const Variables kMpirun = {{"OMPI_COMM_WORLD_RANK", "1"},
                           {"OMPI_COMM_WORLD_SIZE", "2"},
                           {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                           {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}};

TEST(Launch, WithoutALauncherIsAlone) {
  const Launch launch = launch_of({});
  EXPECT_EQ(launch.world, 1);
  EXPECT_EQ(launch.rank, 0);
  EXPECT_EQ(launch.launcher, "");
  EXPECT_EQ(launch_of({{"SLURM_RESTART_COUNT", "2"}}).restarts,
            2);  // a batch job without srun is requeued as well
}

TEST(Launch, ReadsTorchrun) {
  const Launch launch = launch_of(kTorchrun);
  EXPECT_EQ(launch.rank, 3);
  EXPECT_EQ(launch.world, 4);
  EXPECT_EQ(launch.local_rank, 1);
  EXPECT_EQ(launch.local_world, 2);
  EXPECT_EQ(launch.master_addr, "node7");
  EXPECT_EQ(launch.master_port, 41234);
  EXPECT_TRUE(launch.agent_store);
  EXPECT_EQ(launch.restarts, 2);
  EXPECT_EQ(launch.launcher, "torchrun");
}

TEST(Launch, ReadsPlainVariables) {
  const Launch launch = launch_of({{"RANK", "1"}, {"WORLD_SIZE", "3"}, {"MASTER_ADDR", "127.0.0.1"}});
  EXPECT_EQ(launch.local_rank, 1);
  EXPECT_EQ(launch.local_world, 3);
  EXPECT_EQ(launch.master_port, 29500);
  EXPECT_FALSE(launch.agent_store);
  EXPECT_EQ(launch.launcher, "environment");
  const Launch remote =
      launch_of({{"RANK", "1"}, {"WORLD_SIZE", "3"}, {"LOCAL_RANK", "0"}, {"MASTER_ADDR", "10.0.0.1"}});
  EXPECT_EQ(remote.local_world, 0);  // not known before the ranks meet
}

TEST(Launch, ReadsAJobStepOfSlurm) {
  const Launch launch = launch_of(kSrun);
  EXPECT_EQ(launch.rank, 2);
  EXPECT_EQ(launch.world, 3);
  EXPECT_EQ(launch.local_rank, 0);
  EXPECT_EQ(launch.local_world, 1);
  EXPECT_EQ(launch.master_addr, "n07");
  EXPECT_GE(launch.master_port, 15000);
  EXPECT_LT(launch.master_port, 30000);
  EXPECT_EQ(launch.launcher, "srun");
  Variables other = kSrun;
  other["SLURM_STEP_ID"] = "1";
  EXPECT_NE(launch_of(other).master_port, launch.master_port);  // steps side by side
  other["MASTER_ADDR"] = "10.1.2.3";
  other["MASTER_PORT"] = "31000";
  EXPECT_EQ(launch_of(other).master_addr, "10.1.2.3");
  EXPECT_EQ(launch_of(other).master_port, 31000);
  other = kSrun;
  other["SLURM_STEP_NODELIST"] = "n07";
  EXPECT_EQ(launch_of(other).master_addr, "127.0.0.1");
  other.erase("SLURM_STEP_TASKS_PER_NODE");
  EXPECT_EQ(launch_of(other).local_world, 0);
  other["SLURM_NTASKS_PER_NODE"] = "2";
  EXPECT_EQ(launch_of(other).local_world, 2);
}

// sbatch sets the same numbers for its script, which is one process.
TEST(Launch, ABatchScriptIsAlone) {
  for (const char* step : {"", "batch", "4294967291", "4294967290", "-1"}) {
    Variables batch = kSrun;
    batch["SLURM_STEP_ID"] = step;
    EXPECT_EQ(launch_of(batch).world, 1) << step;
  }
}

TEST(Launch, ReadsMpirun) {
  const Launch launch = launch_of(kMpirun);
  EXPECT_EQ(launch.rank, 1);
  EXPECT_EQ(launch.world, 2);
  EXPECT_EQ(launch.local_rank, 1);
  EXPECT_EQ(launch.local_world, 2);
  EXPECT_EQ(launch.master_addr, "127.0.0.1");
  EXPECT_EQ(launch.launcher, "mpirun");
}

TEST(Launch, TheInnermostLauncherCounts) {
  Variables all = kSrun;
  all.insert(kMpirun.begin(), kMpirun.end());
  EXPECT_EQ(launch_of(all).launcher, "mpirun");  // whose daemons srun has started
  all.insert(kTorchrun.begin(), kTorchrun.end());
  EXPECT_EQ(launch_of(all).launcher, "torchrun");
}

TEST(Launch, NamesTheVariableItsValueAndWhatWouldBeRight) {
  EXPECT_EQ(launch_complaint(kTorchrun, {{"RANK", "4"}}),
            "RANK is '4': a whole number from 0 to 3 was expected (WORLD_SIZE is 4)");
  EXPECT_EQ(launch_complaint(kTorchrun, {{"RANK", "x"}}),
            "RANK is 'x': a whole number from 0 to 3 was expected (WORLD_SIZE is 4)");
  EXPECT_EQ(launch_complaint(kTorchrun, {{"WORLD_SIZE", ""}}), "RANK is set, but WORLD_SIZE is not");
  EXPECT_EQ(launch_complaint(kTorchrun, {{"WORLD_SIZE", "99999999999999999999"}}),
            "WORLD_SIZE is '99999999999999999999': a whole number from 1 to 65536 was expected");
  EXPECT_EQ(launch_complaint(kTorchrun, {{"LOCAL_RANK", "2"}}),
            "LOCAL_RANK is '2': a whole number from 0 to 1 was expected (LOCAL_WORLD_SIZE is 2)");
  EXPECT_EQ(launch_complaint(kTorchrun, {{"LOCAL_RANK", "gpu1"}}),
            "LOCAL_RANK is 'gpu1': a whole number from 0 to 1 was expected (LOCAL_WORLD_SIZE is 2)");
  EXPECT_EQ(launch_complaint(kTorchrun, {{"LOCAL_RANK", "4"}, {"LOCAL_WORLD_SIZE", ""}}),
            "LOCAL_RANK is '4': a whole number from 0 to 3 was expected (WORLD_SIZE is 4)");
  EXPECT_EQ(launch_complaint(kMpirun, {{"OMPI_COMM_WORLD_LOCAL_RANK", "2"}}),
            "OMPI_COMM_WORLD_LOCAL_RANK is '2': a whole number from 0 to 1 was expected "
            "(OMPI_COMM_WORLD_LOCAL_SIZE is 2)");
  EXPECT_EQ(launch_complaint(kTorchrun, {{"LOCAL_WORLD_SIZE", "5"}}),
            "LOCAL_WORLD_SIZE is '5': a whole number from 1 to 4 was expected");
  EXPECT_EQ(launch_complaint(kTorchrun, {{"MASTER_PORT", "70000"}}),
            "MASTER_PORT is '70000': a whole number from 1 to 65535 was expected");
  EXPECT_EQ(launch_complaint(kTorchrun, {{"TORCHELASTIC_RESTART_COUNT", "-1"}}),
            "TORCHELASTIC_RESTART_COUNT is '-1': a whole number from 0 to 1000000 was expected");
  EXPECT_EQ(launch_complaint(kTorchrun, {{"MASTER_ADDR", ""}}),
            "MASTER_ADDR is not set: 4 ranks, not known to be all on this machine (LOCAL_WORLD_SIZE), need "
            "the name "
            "or address of the machine of rank 0, or 127.0.0.1");
  EXPECT_EQ(
      launch_complaint(kMpirun, {{"OMPI_COMM_WORLD_LOCAL_SIZE", "1"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "0"}})
          .substr(0, 22),
      "MASTER_ADDR is not set");
  EXPECT_EQ(
      launch_complaint(kSrun, {{"SLURM_STEP_NODELIST", "n[2-1]"}}),
      "SLURM_STEP_NODELIST is 'n[2-1]': the range 2-1 runs backwards; a list such as n[01-03,07],login was "
      "expected");
  EXPECT_EQ(launch_complaint(kSrun, {{"SLURM_PROCID", "3"}}),
            "SLURM_PROCID is '3': a whole number from 0 to 2 was expected");
  EXPECT_EQ(launch_complaint({}, {{"WORLD_SIZE", "2"}}), "WORLD_SIZE is 2, but RANK is not set");
}

TEST(Launch, NamesRanksInSpans) {
  EXPECT_EQ(rank_names({3}), "rank 3");
  EXPECT_EQ(rank_names({0, 1, 2, 5, 7, 8}), "ranks 0-2, 5, 7-8");
}

RankThreads threads_with(const Variables& variables, std::int64_t asked, const Launch& launch) {
  set_launcher(variables);
  const RankThreads threads = threads_of_rank(asked, launch);
  set_launcher({});
  return threads;
}

TEST(Launch, ChoosesThreads) {
  Launch launch = launch_of(kTorchrun);
  EXPECT_EQ(threads_with(kTorchrun, 5, launch).count, 5);
  const RankThreads torchrun = threads_with(kTorchrun, 0, launch);
  EXPECT_EQ(torchrun.count, 1);
  EXPECT_NE(torchrun.reason.find("torchrun sets"), std::string::npos) << torchrun.reason;
  EXPECT_EQ(threads_with({{"OMP_NUM_THREADS", "3,2"}}, 0, launch).count, 3);
  const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  for (const char* nonsense : {"", "x", "0", "-2"})
    EXPECT_EQ(threads_with({{"OMP_NUM_THREADS", nonsense}}, 0, launch).count, std::max(1, cores / 2));
  launch.local_world = 100000;
  EXPECT_EQ(threads_with({}, 0, launch).count, 1);
  launch = launch_of(kSrun);
  EXPECT_EQ(threads_with({{"SLURM_CPUS_PER_TASK", "7"}}, 0, launch).count, 7);
}

TEST(Launch, KnowsLoopbackNames) {
  for (const char* name : {"localhost", "127.0.0.1", "127.0.1.1", "::1"})
    EXPECT_TRUE(is_loopback(name)) << name;
  for (const char* name : {"", "node1", "10.0.0.1", "128.0.0.1"}) EXPECT_FALSE(is_loopback(name)) << name;
}

}  // namespace
}  // namespace exfusion
