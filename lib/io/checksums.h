// CRC-32 (zlib) of files, also from blocks that several processes have read.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace exfusion {

// Of the bytes [begin, begin + size) of a file, or as many as it has. Throws FileError.
std::uint32_t range_crc32(const std::filesystem::path& path, std::uint64_t begin, std::uint64_t size);

// Of `size` bytes, from the CRC-32 of each block of `block` bytes (the last may be shorter); whatever the
// blocks, it is the CRC-32 of the whole.
std::uint32_t combined_crc32(const std::vector<std::uint32_t>& blocks, std::uint64_t size,
                             std::uint64_t block);

std::string crc32_text(std::uint32_t checksum);  // 8 hex digits

}  // namespace exfusion
