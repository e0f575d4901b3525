// CRC-32C (Castagnoli, RFC 3720 B.4), which zlib does not have. Internal to lib/io.
#pragma once
#include <cstdint>
#include <string_view>

namespace exfusion {

std::uint32_t crc32c(std::string_view bytes);

}  // namespace exfusion
