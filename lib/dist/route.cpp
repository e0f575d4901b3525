#include "dist/route.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <thread>

namespace exfusion {
namespace {

using Clock = std::chrono::steady_clock;
using Addresses = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

class Socket {
 public:
  Socket(int family, int type) : fd_(socket(family, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)) {}
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  int fd() const { return fd_; }

 private:
  int fd_;
};

Addresses resolve(const std::string& host, int port, int type) {
  addrinfo wanted{};
  wanted.ai_socktype = type;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), std::to_string(port).c_str(), &wanted, &found) != 0) found = nullptr;
  return Addresses(found, freeaddrinfo);
}

std::string numeric_address(const sockaddr* address, socklen_t size) {
  char text[NI_MAXHOST];
  return getnameinfo(address, size, text, sizeof text, nullptr, 0, NI_NUMERICHOST) == 0 ? text : "";
}

bool connects(const addrinfo& to, std::chrono::milliseconds bound) {
  const Socket socket(to.ai_family, SOCK_STREAM);
  if (socket.fd() < 0) return false;
  if (connect(socket.fd(), to.ai_addr, to.ai_addrlen) == 0) return true;
  if (errno != EINPROGRESS) return false;
  pollfd ready{socket.fd(), POLLOUT, 0};
  int error = 0;
  socklen_t size = sizeof error;
  return poll(&ready, 1, static_cast<int>(bound.count())) == 1 &&
         getsockopt(socket.fd(), SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == 0;
}

}  // namespace

// Connecting a datagram socket sends nothing: it only asks the routing table.
std::string address_towards(const std::string& host) {
  const Addresses found = resolve(host, 9, SOCK_DGRAM);
  for (const addrinfo* to = found.get(); to; to = to->ai_next) {
    const Socket socket(to->ai_family, SOCK_DGRAM);
    sockaddr_storage own{};
    socklen_t size = sizeof own;
    auto* address = reinterpret_cast<sockaddr*>(&own);
    if (socket.fd() >= 0 && connect(socket.fd(), to->ai_addr, to->ai_addrlen) == 0 &&
        getsockname(socket.fd(), address, &size) == 0)
      return numeric_address(address, size);
  }
  return "";
}

std::string outer_address() {
  ifaddrs* first = nullptr;
  if (getifaddrs(&first) != 0) return "";
  const std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> all(first, freeifaddrs);
  for (const ifaddrs* one = first; one; one = one->ifa_next) {
    if (one->ifa_addr && one->ifa_addr->sa_family == AF_INET && (one->ifa_flags & IFF_UP) &&
        !(one->ifa_flags & IFF_LOOPBACK))
      return numeric_address(one->ifa_addr, sizeof(sockaddr_in));
  }
  return "";
}

std::string name_problem(const std::string& host) {
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.c_str(), nullptr, nullptr, &found);
  const Addresses all(found, freeaddrinfo);
  return error == 0 ? "" : gai_strerror(error);
}

bool answers(const std::string& host, int port, std::chrono::milliseconds timeout) {
  const auto until = Clock::now() + timeout;
  while (true) {
    const Addresses found = resolve(host, port, SOCK_STREAM);  // a name may become known while we wait
    for (const addrinfo* to = found.get(); to; to = to->ai_next) {
      if (connects(*to, std::chrono::seconds(2))) return true;
    }
    if (Clock::now() >= until) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
}

}  // namespace exfusion
