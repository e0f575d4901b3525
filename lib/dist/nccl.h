// The NCCL backend of libtorch: collectives between GPUs. Builds without CUDA refuse it (without_nccl.cpp).
#pragma once
#include <chrono>

namespace c10d {
class Backend;
class Store;
}  // namespace c10d

namespace exfusion {

// Binds this rank to GPU `local_rank`, whose connections are made by the first collective. A collective that
// takes longer than `timeout` ends the process, as NCCL's kernels cannot be given up otherwise. The caller
// owns a reference, which ProcessGroup takes. Throws UsageError where there is no such GPU.
c10d::Backend* make_nccl(c10d::Store& store, int rank, int world, int local_rank,
                         std::chrono::milliseconds timeout);

}  // namespace exfusion
