// A trained model as other tools load it.
#pragma once
#include <filesystem>

#include "train/model_source.h"

namespace exfusion {

// All forms are a `folder` with model.safetensors, config.json and README.md (a model card), which appears
// only after the files were read back and gave the model's own logits (in evaluation mode), bit for bit, on a
// fixed batch. Throws RunFolderError if the folder exists and not `overwrite`, VerificationError if the
// logits differ.

// As timm loads it: the dense form, in which experts inside the model are collapsed. Throws CheckpointError
// for a model that has none.
void export_timm(const LoadedModel& source, const std::filesystem::path& folder, bool overwrite);

// With its experts, for a model that cannot be collapsed; what reads models here reads it (docs/formats.md).
// Throws CheckpointError for a model that can be.
void export_moe(const LoadedModel& source, const std::filesystem::path& folder, bool overwrite);

// As export_timm, and beside it experts.safetensors, as a checkpoint of `fusion.materialize: true` holds it:
// the static experts that the model stands for (fusion/collapsed_static.h). Throws CheckpointError for a
// model of any other training.
void export_experts(const LoadedModel& source, const std::filesystem::path& folder, bool overwrite);

// Whichever of the first two fits the model; the log says which.
void export_model(const LoadedModel& source, const std::filesystem::path& folder, bool overwrite);

}  // namespace exfusion
