#include "io/checksums.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <cstdio>

#include "io/open_files.h"

namespace exfusion {

std::uint32_t range_crc32(const std::filesystem::path& path, std::uint64_t begin, std::uint64_t size) {
  InputFile file(path);
  file.seek(begin);
  uLong checksum = crc32_z(0, nullptr, 0);
  std::array<char, 1 << 16> buffer;
  while (size > 0) {
    const std::size_t count = file.read(buffer.data(), std::min<std::uint64_t>(size, buffer.size()));
    if (count == 0) break;
    checksum = crc32_z(checksum, reinterpret_cast<const Bytef*>(buffer.data()), count);
    size -= count;
  }
  return static_cast<std::uint32_t>(checksum);
}

std::uint32_t combined_crc32(const std::vector<std::uint32_t>& blocks, std::uint64_t size,
                             std::uint64_t block) {
  uLong checksum = crc32_z(0, nullptr, 0);
  for (const std::uint32_t next : blocks) {
    const std::uint64_t length = std::min(size, block);
    checksum = crc32_combine(checksum, next, static_cast<z_off_t>(length));
    size -= length;
  }
  return static_cast<std::uint32_t>(checksum);
}

std::string crc32_text(std::uint32_t checksum) {
  std::array<char, 9> digits{};
  std::snprintf(digits.data(), digits.size(), "%08x", checksum);
  return digits.data();
}

}  // namespace exfusion
