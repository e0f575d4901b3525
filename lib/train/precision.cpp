#include "train/precision.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>

namespace exfusion {

PrecisionScope::PrecisionScope(const std::string& precision, c10::DeviceType device)
    : active_(precision == "bf16"), device_(device) {
  if (!active_) return;
  was_enabled_ = at::autocast::is_autocast_enabled(device_);
  at::autocast::set_autocast_dtype(device_, at::kBFloat16);
  at::autocast::set_autocast_enabled(device_, true);
  at::autocast::increment_nesting();
}

PrecisionScope::~PrecisionScope() {
  if (!active_) return;
  if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(device_, was_enabled_);
}

}  // namespace exfusion
