#include "dist/connect.h"

#include <c10/util/Exception.h>
#include <c10/util/Logging.h>
#include <fmt/format.h>
#include <net/if.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <set>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "core/duration.h"
#include "core/error.h"
#include "core/log.h"
#include "dist/bounded.h"
#include "dist/gloo.h"
#include "dist/nccl.h"
#include "dist/route.h"
#include "dist/waiting_line.h"

namespace exfusion {
namespace {

constexpr std::chrono::seconds kConnectGrace(1);  // c10d's own time ends first, with better words
constexpr std::chrono::seconds kHandshake(30);    // a store answers at once
constexpr std::chrono::milliseconds kSlice(500);  // of the wait for whoever serves it
constexpr std::chrono::seconds kTimeToTell(10);   // why this rank does not come

std::string chosen_backend(const std::string& backend, const std::string& device) {
  if (backend == "nccl" && device != "cuda")
    throw UsageError(
        fmt::format("dist.backend: nccl moves GPU memory, but train.device is {}: use gloo or auto", device));
  if (backend == "gloo" && device == "cuda")
    throw UsageError("dist.backend: gloo works on CPUs, but train.device is cuda: use nccl or auto");
  return backend == "auto" ? (device == "cuda" ? "nccl" : "gloo") : backend;
}

std::string message(const std::exception& error) {
  const auto* from_torch = dynamic_cast<const c10::Error*>(&error);
  return from_torch ? from_torch->what_without_backtrace() : error.what();
}

// Until something listens where rank 0 or the agent serves the store.
void wait_for_store(const Launch& launch, std::chrono::milliseconds timeout) {
  const std::string place = fmt::format("{}:{}", launch.master_addr, launch.master_port);
  WaitingLine line(timeout);
  while (!answers(launch.master_addr, launch.master_port, std::min(line.left(), kSlice))) {
    const std::string problem = name_problem(launch.master_addr);
    if (line.left().count() > 0)
      line.say_if_due([&] {
        return problem.empty()
                   ? fmt::format("waiting for rank 0: nothing answers at {} (MASTER_ADDR, MASTER_PORT)",
                                 place)
                   : fmt::format("waiting for rank 0: MASTER_ADDR is '{}': {}", launch.master_addr, problem);
      });
    else if (problem.empty())
      throw DistributedError(
          fmt::format("rank 0 did not come: nothing answers at {} (MASTER_ADDR, MASTER_PORT) within {}",
                      place, duration_text(timeout)));
    else
      throw UsageError(
          fmt::format("MASTER_ADDR is '{}': {}: the name or address of the machine of rank 0 was expected",
                      launch.master_addr, problem));
  }
}

[[noreturn]] void fail_without_store(const Launch& launch, bool serves, const std::string& error) {
  if (serves && error.find("EADDRINUSE") != std::string::npos)
    throw UsageError(
        fmt::format("MASTER_PORT is {}: another program listens on that port of this machine, where rank 0 "
                    "serves the store: choose another",
                    launch.master_port));
  throw DistributedError(
      serves ? fmt::format("rank 0 cannot serve the store on port {} (MASTER_PORT): {}", launch.master_port,
                           error)
             : fmt::format("the store at {}:{}: {}", launch.master_addr, launch.master_port, error));
}

// Rank 0 serves, unless torchrun's agent does. Every attempt of torchrun has keys of its own: those of a dead
// attempt must not be read by the next.
Store open_store(const Launch& launch, std::chrono::milliseconds timeout) {
  // What fails is said once, by us: c10d's warnings are stacks of 20 lines.
  if (!std::getenv("TORCH_CPP_LOG_LEVEL")) FLAGS_caffe2_log_level = 2;
  // c10d and Gloo write to sockets whose other end may have been killed, and take the error for an answer.
  std::signal(SIGPIPE, SIG_IGN);
  const bool serves = launch.rank == 0 && !launch.agent_store;
  if (!serves)
    wait_for_store(launch, timeout);
  else if (const std::string problem = name_problem(launch.master_addr); !problem.empty())
    log_warning("MASTER_ADDR is '{}': {}: by this name nobody finds rank 0", launch.master_addr, problem);
  c10d::TCPStoreOptions options;
  options.port = static_cast<std::uint16_t>(launch.master_port);
  options.isServer = serves;
  options.waitWorkers = false;  // meet() does, and can say who is missing
  options.timeout = timeout;
  if (serves && launch.store_fd >= 0) options.masterListenFd = launch.store_fd;
  const std::string host =
      serves ? "127.0.0.1" : launch.master_addr;  // the server listens on every interface
  const std::string prefix = fmt::format("exfusion/{}", launch.restarts);
  const std::chrono::milliseconds patience = std::min<std::chrono::milliseconds>(timeout, kHandshake);
  std::optional<c10d::Store*> store;
  try {
    store = within(patience + kConnectGrace, [host, options, prefix]() -> c10d::Store* {
      return c10::make_intrusive<c10d::PrefixStore>(prefix,
                                                    c10::make_intrusive<c10d::TCPStore>(host, options))
          .release();
    });
  } catch (const std::exception& error) {
    fail_without_store(launch, serves, message(error));
  }
  if (!store)
    fail_without_store(
        launch, serves,
        fmt::format("no answer for {}: is it another program that listens there?", duration_text(patience)));
  return Store(*store, std::min<std::chrono::milliseconds>(timeout, std::chrono::seconds(10)));
}

// Which address of this machine Gloo publishes to the other ranks.
std::string own_address(const Connection& connection) {
  const Launch& launch = connection.launch;
  if (is_loopback(launch.master_addr)) return "127.0.0.1";
  if (const std::string problem = name_problem(launch.master_addr); !problem.empty())
    throw UsageError(fmt::format("MASTER_ADDR is '{}': {}", launch.master_addr, problem));
  const std::string address = address_towards(launch.master_addr);
  if (address.empty())
    throw DistributedError(
        fmt::format("no interface of this machine routes to MASTER_ADDR {}: GLOO_SOCKET_IFNAME can name one",
                    launch.master_addr));
  // A machine's own name often stands for loopback in its /etc/hosts, which other machines cannot reach.
  const std::set<std::string> machines(connection.hosts.begin(), connection.hosts.end());
  const std::string outer = is_loopback(address) && machines.size() > 1 ? outer_address() : "";
  return outer.empty() ? address : outer;
}

// The interface that the user has chosen; "": none.
std::string chosen_interface() {
  const char* interface = std::getenv("GLOO_SOCKET_IFNAME");
  const std::string name = interface ? interface : "";
  if (!name.empty() && if_nametoindex(name.c_str()) == 0)
    throw UsageError(fmt::format("GLOO_SOCKET_IFNAME is '{}': this machine has no such interface", name));
  return name;
}

c10d::Backend* make_backend(const Connection& connection, const std::string& interface,
                            std::chrono::milliseconds timeout) {
  const Launch& launch = connection.launch;
  const Store store = connection.store->within(connection.backend);
  if (connection.backend == "nccl")
    return make_nccl(store.native(), launch.rank, launch.world, launch.local_rank, timeout);
  const std::string address = interface.empty() ? own_address(connection) : "";
  try {
    return make_gloo(store.native(), launch.rank, launch.world, timeout, interface, address);
  } catch (const std::exception& error) {
    throw DistributedError(fmt::format("rank {} cannot connect over {}: {}", launch.rank,
                                       interface.empty() ? address : interface, message(error)));
  }
}

// What all ranks do first: say who they are and what for. Counts the ranks of this machine if the launcher
// did not.
std::vector<std::string> meet_all(const Store& store, Launch& launch, const Fields& purpose,
                                  std::chrono::milliseconds timeout) {
  const std::vector<std::string> hosts = check_agreement(store, launch, "start", purpose, timeout);
  if (launch.local_world == 0)
    launch.local_world = static_cast<int>(std::count(hosts.begin(), hosts.end(), host_name()));
  return hosts;
}

}  // namespace

Connection connect(const Launch& launch, const DistConfig& config, const std::string& device,
                   const Fields& purpose) {
  Connection connection;
  connection.launch = launch;
  if (launch.world == 1) {
    chosen_backend(config.backend, device);
    connection.hosts = {host_name()};
    return connection;
  }
  connection.store = open_store(launch, config.timeout);
  claim_rank(*connection.store, launch);
  try {  // whose backend or interface is wrong says so while the others still listen
    connection.backend = chosen_backend(config.backend, device);
    const std::string interface = chosen_interface();
    connection.hosts = meet_all(*connection.store, connection.launch, purpose, config.timeout);
    connection.group = ProcessGroup(make_backend(connection, interface, config.timeout));
  } catch (const Error& error) {
    refuse(*connection.store, launch, error.what());
    throw;
  }
  return connection;
}

Launch only_meet(Launch launch, std::chrono::milliseconds timeout, const Fields& purpose) {
  if (launch.world == 1) return launch;
  const Store store = open_store(launch, timeout);
  claim_rank(store, launch);
  meet_all(store, launch, purpose, timeout);
  leave(store, launch);
  return launch;
}

void could_not_start(const std::string& reason) noexcept {
  try {
    const Launch launch = launch_from_environment();
    if (launch.world == 1) return;
    const bool client = launch.rank != 0 || launch.agent_store;
    if (client && !answers(launch.master_addr, launch.master_port, kTimeToTell)) return;
    const Store store = open_store(launch, kTimeToTell);
    claim_rank(store, launch);
    refuse(store, launch, reason, kTimeToTell);
  } catch (const std::exception&) {  // the others say that it did not come
  }
}

}  // namespace exfusion
