#include "dist/gloo.h"

#define USE_C10D_GLOO  // else the header is empty
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

namespace exfusion {

c10d::Backend* make_gloo(c10d::Store& store, int rank, int world, std::chrono::milliseconds timeout,
                         const std::string& interface, const std::string& host) {
  using Gloo = c10d::ProcessGroupGloo;
  const auto options = Gloo::Options::create(timeout);
  options->devices.push_back(interface.empty() ? Gloo::createDeviceForHostname(host)
                                               : Gloo::createDeviceForInterface(interface));
  const auto shared = c10::intrusive_ptr<c10d::Store>::reclaim_copy(&store);
  return c10::make_intrusive<Gloo>(shared, rank, world, options).release();
}

}  // namespace exfusion
