// Whether products run in bf16: what CPU autocast says in this thread. Our own functions ask it; libtorch's
// operators follow it by themselves.
#pragma once
#include <ATen/autocast_mode.h>

#include "nn/kernel_arrays.h"

namespace exfusion {

// The type of activations that a product reads and writes, given its input.
inline at::ScalarType product_type(const at::Tensor& x) {
  const bool bf16 = has_kernels(x) && at::autocast::is_autocast_enabled(at::kCPU);
  return bf16 ? at::kBFloat16 : x.scalar_type();
}

// Keeps autocast off for as long as it lives: NoAutocast guard(c10::autocast_dispatch_keyset).
using NoAutocast = c10::impl::ExcludeDispatchKeyGuard;

}  // namespace exfusion
