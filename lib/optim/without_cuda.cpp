#include "core/error.h"
#include "optim/cuda_kernels.h"

namespace exfusion {

bool built_with_cuda() {
  return false;
}

void adamw_update_cuda(std::int64_t, float*, float*, float*, const float*, float, const AdamWScalars<float>&,
                       void*) {
  throw Failure("adamw_update: this build has no CUDA");
}

void inner_products_cuda(const float*, std::span<const float* const>, std::int64_t, bool, double*, double*,
                         void*) {
  throw Failure("inner_products: this build has no CUDA");
}

}  // namespace exfusion
