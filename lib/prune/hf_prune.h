// One-shot pruning of a mixture of experts of Hugging Face's transformers.
#pragma once
#include <filesystem>

#include "prune/hf_model.h"
#include "prune/selection.h"

namespace exfusion {

// Writes the model with these experts alone, numbered anew in their order: routers without the other rows,
// config.json with the new number, tensors bit for bit, in the files in which they lay; beside them what else
// the folder holds, but for weights in other formats and subfolders. One tensor at a time is in memory.
// `kept` has every layer of the model, with as many experts each. The folder appears once it is whole. Throws
// RunFolderError if it exists, FormatError, FileError.
void write_pruned_hf(const HfModel& model, const KeptExperts& kept, const std::filesystem::path& folder);

}  // namespace exfusion
