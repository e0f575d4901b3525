// Addresses: whether a port answers, and from where a host is reached.
#pragma once
#include <chrono>
#include <string>

namespace exfusion {

// The address of this machine from which `host` is reached, as numbers; "" if there is no way to it.
std::string address_towards(const std::string& host);

// An address of this machine that is not loopback; "" if it has none.
std::string outer_address();

// Why `host` cannot be resolved ("Name or service not known"); "" if it can.
std::string name_problem(const std::string& host);

// Waits until something listens at host:port; false if nothing does within `timeout`.
bool answers(const std::string& host, int port, std::chrono::milliseconds timeout);

}  // namespace exfusion
