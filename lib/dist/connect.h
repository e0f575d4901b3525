// Brings the ranks of a run together: the store, the meeting of all ranks, the group of Gloo or NCCL.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "dist/dist_config.h"
#include "dist/launch.h"
#include "dist/process_group.h"
#include "dist/store.h"

namespace exfusion {

struct Connection {
  Launch launch;                   // local_world counted if the launcher did not say it
  ProcessGroup group;              // alone: of this process only
  std::optional<Store> store;      // nullopt: alone
  std::string backend;             // "gloo", "nccl"; "": alone
  std::vector<std::string> hosts;  // of every rank
};

// Waits for all ranks; `device` is the recipe's train.device, by which dist.backend: auto decides. Gloo talks
// over GLOO_SOCKET_IFNAME, else 127.0.0.1 if MASTER_ADDR is a loopback name, else the interface that routes
// to MASTER_ADDR. Throws UsageError for a backend that does not fit the device, DistributedError naming the
// ranks that did not come within dist.timeout.
Connection connect(const Launch& launch, const DistConfig& config, const std::string& device);

}  // namespace exfusion
