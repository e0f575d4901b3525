// Folders of exfusion-upcycle: a dense model whose FFNs were made into experts, before any training.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "fusion/fusion_config.h"
#include "train/model_source.h"

namespace exfusion {

// upcycle.json. Of `fusion` it holds experts, init, noise, drop_ratio and permute.
struct UpcycleRecord {
  FusionConfig fusion;
  std::uint64_t seed = 0;
  std::vector<std::string> ffns;  // names of those that have experts: "blocks.0.mlp", …
};

// Whether the folder is one (has an upcycle.json).
bool is_upcycled(const std::filesystem::path& folder);

// Checks the record and the files it lists (size, checksum). Throws FormatError.
UpcycleRecord read_upcycle_record(const std::filesystem::path& folder);

// Makes the experts as a run with this fusion.{experts, init, …, layers} and seed would, and writes
// model.safetensors (fused), config.json (timm's), experts.safetensors and upcycle.json to `folder`, which
// appears once the files were read back and are the same. Returns the names of the FFNs. Throws
// RunFolderError if the folder exists and not `overwrite`, VerificationError.
std::vector<std::string> write_upcycled(const LoadedModel& source, const FusionConfig& fusion,
                                        std::uint64_t seed, const std::filesystem::path& folder,
                                        bool overwrite);

}  // namespace exfusion
