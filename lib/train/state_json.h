// The record of a checkpoint, state.json: as text, checked, and read from a folder.
#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

#include "train/checkpoint.h"

namespace exfusion {

struct FileRecord {
  std::uint64_t size = 0;
  std::string crc32;  // of the whole file, 8 hex digits
};

struct StateRecord {
  CheckpointInfo info;
  std::map<std::string, FileRecord> files;  // by name
};

std::string state_text(const StateRecord& record);  // with the record's own checksum

// Throws CheckpointError or FormatError, naming `file`, unless the text is a whole record.
StateRecord parse_state(const std::string& text, const std::filesystem::path& file);

// Reads state.json and checks every file it lists. Throws CheckpointError, FormatError, FileError.
StateRecord checked_state(const std::filesystem::path& checkpoint);

}  // namespace exfusion
