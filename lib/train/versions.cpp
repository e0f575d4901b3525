#include "train/versions.h"

#include <torch/version.h>

namespace exfusion {

std::string exfusion_version() {
  return EXFUSION_VERSION;
}

std::string libtorch_version() {
  return TORCH_VERSION;
}

std::string version_text() {
  return "exfusion " + exfusion_version() + ", libtorch " + libtorch_version();
}

}  // namespace exfusion
