// What timm needs beside model.safetensors to build one of our models and load its weights.
#pragma once
#include <string>
#include <vector>

#include "models/vit.h"

namespace exfusion {

// The text of a config.json for timm.create_model("local-dir:FOLDER", pretrained=True). `mean` and `std` are
// those of the training data, one per channel, of pixels scaled to [0, 1]. The same `model_args` build the
// model for `checkpoint_path=`. A model whose FFNs are not dense is none of timm's: there `architecture` is
// exfusion_vit, which timm refuses, and `exfusion` says what its FFNs compute (docs/formats.md).
std::string timm_config_json(const ViTConfig& config, const std::vector<double>& mean,
                             const std::vector<double>& std);

}  // namespace exfusion
