// Reads back the config.json that timm_export.h writes.
#pragma once
#include <string>
#include <vector>

#include "models/vit.h"

namespace exfusion {

struct TimmConfig {
  ViTConfig vit;
  std::vector<double> mean, std;  // per channel
};

// `name` is for messages. Throws FormatError naming the field that is missing or wrong.
TimmConfig parse_timm_config(const std::string& json, const std::string& name);

}  // namespace exfusion
