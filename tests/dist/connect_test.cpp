#include "dist/connect.h"

#include <ATen/ATen.h>
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <thread>
#include <vector>

#include "core/error.h"
#include "dist/agreement.h"
#include "dist/route.h"

namespace exfusion {
namespace {

using namespace std::chrono_literals;

struct Listener {
  int fd = -1, port = 0;

  Listener() {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bind(fd, reinterpret_cast<sockaddr*>(&address), size);
    listen(fd, 16);
    getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
    port = ntohs(address.sin_port);
  }
};

DistConfig config_with(std::chrono::milliseconds timeout) {
  DistConfig config;
  config.timeout = timeout;
  return config;
}

TEST(Connect, BringsAllRanksTogetherOverAnInheritedSocket) {
  const Listener listener;
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < 3; ++rank) {
    ranks.emplace_back([&, rank] {
      Launch launch;
      launch.rank = rank;
      launch.world = 3;
      launch.local_world = 0;
      launch.master_port = listener.port;
      if (rank == 0) launch.store_fd = listener.fd;
      const Connection connection = connect(launch, config_with(30s), "cpu");
      EXPECT_EQ(connection.backend, "gloo");
      EXPECT_EQ(connection.launch.local_world, 3);  // counted
      EXPECT_EQ(connection.hosts, std::vector<std::string>(3, host_name()));
      const at::Tensor x = at::full({3}, static_cast<double>(rank + 1));
      connection.group.all_reduce(x);
      EXPECT_TRUE(at::equal(x, at::full({3}, 6.0)));
      leave(*connection.store, connection.launch);
    });
  }
  for (std::thread& rank : ranks) rank.join();
}

TEST(Connect, AloneNeedsNothing) {
  const Connection connection = connect({}, config_with(1s), "cpu");
  EXPECT_TRUE(connection.group.alone());
  EXPECT_FALSE(connection.store);
}

TEST(Connect, TheBackendFitsTheDevice) {
  DistConfig config;
  config.backend = "nccl";
  EXPECT_THROW(connect({}, config, "cpu"), UsageError);
  config.backend = "gloo";
  EXPECT_THROW(connect({}, config, "cuda"), UsageError);
}

std::string failure(const Launch& launch) {
  try {
    connect(launch, config_with(300ms), "cpu");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

// A service that is no store takes the connection and says nothing.
TEST(Connect, SaysWhereItFoundNoStore) {
  const Listener silent;
  Launch launch;
  launch.rank = 1;
  launch.world = 2;
  launch.master_port = silent.port;
  const std::string place = "127.0.0.1:" + std::to_string(silent.port);
  EXPECT_EQ(failure(launch),
            "the store at " + place + ": no answer for 0.3 s: is it another program that listens there?");
  close(silent.fd);
  EXPECT_EQ(failure(launch),
            "rank 0 did not come: nothing answers at " + place + " (MASTER_ADDR, MASTER_PORT) within 0.3 s");
}

TEST(Connect, RankZeroSaysThatItsPortIsTaken) {
  const Listener taken;
  Launch launch;
  launch.world = 2;
  launch.master_port = taken.port;
  EXPECT_EQ(failure(launch),
            "MASTER_PORT is " + std::to_string(taken.port) +
                ": another program listens on that port of this machine, where rank 0 serves the "
                "store: choose another");
}

TEST(Connect, SaysThatMasterAddrIsNoName) {
  Launch launch;
  launch.rank = 1;
  launch.world = 2;
  launch.master_addr = "no.such.host.invalid";
  const std::string said = failure(launch);
  EXPECT_EQ(said.find("MASTER_ADDR is 'no.such.host.invalid': "), 0u) << said;
  EXPECT_NE(said.find(": the name or address of the machine of rank 0 was expected"), std::string::npos)
      << said;
}

TEST(Route, KnowsTheWayToItself) {
  EXPECT_EQ(address_towards("127.0.0.1"), "127.0.0.1");
  EXPECT_EQ(address_towards("no.such.host.invalid"), "");
  EXPECT_NE(name_problem("no.such.host.invalid"), "");
  EXPECT_EQ(name_problem("127.0.0.1"), "");
  EXPECT_NE(outer_address(), "127.0.0.1");
  EXPECT_FALSE(answers("no.such.host.invalid", 1, 0ms));
  const Listener listener;
  EXPECT_TRUE(answers("127.0.0.1", listener.port, 0ms));
}

}  // namespace
}  // namespace exfusion
