// What the ranks of a run tell each other for a checkpoint. Every function is called by all ranks.
#pragma once
#include <c10/core/Device.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "dist/process_group.h"
#include "io/checksums.h"
#include "io/safetensors.h"
#include "io/tensor_part.h"
#include "train/state_json.h"

namespace exfusion {

struct CheckpointRanks {
  ProcessGroup group;
  c10::Device device;  // where the group's tensors must be
  bool shared = true;  // whether all ranks see the folder of rank 0
};

// What `make` returns on rank 0, at most 16 MiB. If it throws, all ranks throw: rank 0 the same, the others a
// CheckpointError with the same words.
std::string text_of_rank_0(const CheckpointRanks& ranks, const std::function<std::string()>& make);

// Whether all ranks see and may write what is in `folder` of rank 0: they look for a file that rank 0 puts
// there for that long. Throws as text_of_rank_0 does if rank 0 cannot write.
bool folder_is_shared(const CheckpointRanks& ranks, const std::filesystem::path& folder);

// Writes one file of tensors that ranks may hold parts of: rank 0 all it holds whole and its own parts, the
// others the rest, into the file itself or, where they do not see it, through rank 0 in pieces of at most
// kPieceBytes. `parts` have the same names, types and whole shapes on all ranks. The bytes are those of
// write_safetensors. Synced. Rank 0 returns the file's size and checksum. Throws FileError.
FileRecord write_file_of_ranks(const CheckpointRanks& ranks, const std::filesystem::path& path,
                               const TensorParts& parts, const Metadata& metadata);

// CRC-32 of a file of `size` bytes that all ranks see and nobody writes: rank r reads the blocks r, r +
// world, ….
std::uint32_t crc32_of_ranks(const CheckpointRanks& ranks, const std::filesystem::path& path,
                             std::uint64_t size, std::uint64_t block);

// Copies the file's tensors into `parts`, on every rank what lies in its parts. Only rank 0 has the `file`
// (null on the others), which has passed expect_exactly.
void read_file_of_ranks(const CheckpointRanks& ranks, const SafetensorsFile* file, const TensorParts& parts);

}  // namespace exfusion
