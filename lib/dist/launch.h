// Which of how many processes this one is, from the environment that its launcher made.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace exfusion {

struct Launch {
  int rank = 0, world = 1;              // of all processes
  int local_rank = 0, local_world = 1;  // of those on this machine; local_world 0: connect() counts them
  std::string master_addr = "127.0.0.1";
  int master_port = 29500;
  bool agent_store = false;  // torchrun's agent serves the store: every rank is a client
  int store_fd = -1;         // rank 0 of --nproc: the listening socket for the store, open in this process
  int restarts = 0;          // how often the launcher has started the job anew
  std::string launcher;      // "torchrun", "mpirun", "srun", "environment"; "": alone
};

// torchrun and plain variables (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT),
// mpirun (OMPI_COMM_WORLD_*), a job step of srun (SLURM_*); the first of these that is there. Whoever starts
// many ranks on several machines without torchrun or srun sets MASTER_ADDR. Throws UsageError naming the
// variable, its value and what would be right.
Launch launch_from_environment();

// 127.0.0.1, localhost and the like: all ranks are on this machine.
bool is_loopback(const std::string& host);

// "rank 3", "ranks 0-2, 5"; `ranks` in order.
std::string rank_names(const std::vector<int>& ranks);

struct RankThreads {
  int count = 1;
  std::string reason;  // for the log
};

// Threads of this rank: `asked` (dist.threads) if above 0, OMP_NUM_THREADS, SLURM_CPUS_PER_TASK of a job
// step, else the cores of this process over the local ranks, at least 1.
RankThreads threads_of_rank(std::int64_t asked, const Launch& launch);

}  // namespace exfusion
