// What stands for NCCL in a build without CUDA.
#include "core/error.h"
#include "dist/nccl.h"

namespace exfusion {

c10d::Backend* make_nccl(c10d::Store&, int, int, int, std::chrono::milliseconds) {
  throw UsageError("dist.backend: nccl needs a build with CUDA (./dev build cuda); gloo works everywhere");
}

}  // namespace exfusion
