// Brings the ranks of a run together: the store, the meeting of all ranks, the group of Gloo or NCCL.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "dist/agreement.h"
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

// Waits for all ranks, who must have come for the same `purpose` (check_agreement()); `device` is the
// recipe's train.device, by which dist.backend: auto decides. Gloo talks over GLOO_SOCKET_IFNAME, else
// 127.0.0.1 if MASTER_ADDR is a loopback name, else the interface that routes to MASTER_ADDR. Throws
// UsageError for a backend that does not fit the device and for wrong addresses and ports, DistributedError
// naming the ranks that did not come within dist.timeout or came for something else.
Connection connect(const Launch& launch, const DistConfig& config, const std::string& device,
                   const Fields& purpose = {});

// As connect() without the group, for what one rank does alone. Returns `launch` with local_world counted.
Launch only_meet(Launch launch, std::chrono::milliseconds timeout, const Fields& purpose);

// In place of connect(): tells the other ranks of the environment why this one does not come, if it reaches
// the store within 10 s. Rank 0 stays as long for them to read it.
void could_not_start(const std::string& reason) noexcept;

}  // namespace exfusion
