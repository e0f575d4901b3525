// CPU autocast to bf16, as a training step in bf16 has it.
#pragma once
#include <ATen/autocast_mode.h>

namespace exfusion {

struct Bf16Scope {
  Bf16Scope() {
    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
    at::autocast::set_autocast_enabled(at::kCPU, true);
  }
  ~Bf16Scope() {
    at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(at::kCPU, false);
  }
};

}  // namespace exfusion
