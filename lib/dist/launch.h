// Which of how many processes this one is, from the environment that its launcher made.
#pragma once
#include <string>

namespace exfusion {

struct Launch {
  int rank = 0, world = 1;              // of all processes
  int local_rank = 0, local_world = 1;  // of those on this machine
  std::string master_addr = "127.0.0.1";
  int master_port = 29500;
  bool agent_store = false;  // torchrun's agent serves the store: every rank is a client
  int restarts = 0;          // how often the launcher has started the job anew
  std::string launcher;      // "torchrun", "srun", "mpirun", "environment"; "": alone
};

// torchrun and plain variables (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT),
// srun (SLURM_*), mpirun (OMPI_COMM_WORLD_*); in this order. Throws UsageError naming the variable.
Launch launch_from_environment();

}  // namespace exfusion
