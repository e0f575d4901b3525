// The Gloo backend of libtorch: collectives over TCP.
#pragma once
#include <chrono>
#include <string>

namespace c10d {
class Backend;
class Store;
}  // namespace c10d

namespace exfusion {

// Connects this rank to all others, which do the same over the same store. `interface` names the network
// interface to use, else `host` an address of this machine. Blocks until everyone is there. The caller owns a
// reference, which ProcessGroup takes. Throws what c10d throws.
c10d::Backend* make_gloo(c10d::Store& store, int rank, int world, std::chrono::milliseconds timeout,
                         const std::string& interface, const std::string& host);

}  // namespace exfusion
