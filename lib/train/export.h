// A trained model as other tools load it.
#pragma once
#include <filesystem>

#include "train/model_source.h"

namespace exfusion {

// Writes model.safetensors, config.json (timm's) and README.md (a model card) to `folder`, which appears only
// after the files were read back and gave the same logits, bit for bit, on a fixed batch. Throws
// RunFolderError if the folder exists and not `overwrite`, VerificationError if the logits differ.
void export_timm(const LoadedModel& source, const std::filesystem::path& folder, bool overwrite);

}  // namespace exfusion
