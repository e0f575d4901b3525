// What this build is made of: for --version, recipe.yaml and state.json.
#pragma once
#include <string>

namespace exfusion {

std::string exfusion_version();  // "0.2.0"
std::string libtorch_version();  // of the headers the build used, "2.13.0"
std::string version_text();      // one line with both

}  // namespace exfusion
