#include "dist/nccl.h"

#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAFunctions.h>
#include <fmt/format.h>

#define USE_C10D_NCCL  // else the header is empty
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "core/error.h"

namespace exfusion {

c10d::Backend* make_nccl(c10d::Store& store, int rank, int world, int local_rank,
                         std::chrono::milliseconds timeout) {
  using Nccl = c10d::ProcessGroupNCCL;
  const int gpus = at::cuda::device_count();
  if (local_rank >= gpus)
    throw UsageError(fmt::format("no GPU for local rank {}: this machine has {}", local_rank, gpus));
  const auto device = static_cast<c10::DeviceIndex>(local_rank);
  c10::cuda::set_device(device);
  // Errors and silence are noticed by a thread of NCCL's group rather than by whoever waits.
  setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1", 0);
  const auto options = Nccl::Options::create(/*is_high_priority_stream=*/true);
  options->timeout = timeout;
  options->group_name = "exfusion";
  const auto shared = c10::intrusive_ptr<c10d::Store>::reclaim_copy(&store);
  auto group = c10::make_intrusive<Nccl>(shared, rank, world, options);
  group->setBoundDeviceId(at::Device(at::kCUDA, device));
  return group.release();
}

}  // namespace exfusion
