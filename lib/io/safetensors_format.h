// What the reader and the writer of safetensors share. Internal to lib/io.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace exfusion {

constexpr std::uint64_t kMaxHeaderLength = 100'000'000;  // the format library's limit
constexpr std::size_t kMaxRank = 16;

struct ElementType {
  std::string_view name;
  std::uint64_t bits;
};

// All element types of the format, in the order of the format's library (0.8): ascending alignment. It writes
// tensors in descending order of this table, then by name.
constexpr std::array<ElementType, 20> kElementTypes = {{
    {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},   {"I8", 8},    {"F8_E5M2", 8},
    {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16}, {"BF16", 16}, {"I32", 32},
    {"U32", 32},    {"F32", 32},    {"C64", 64},    {"F64", 64},    {"I64", 64}, {"U64", 64},
}};

// A name from a file as it may stand in a message: quoted, escaped, shortened.
std::string quoted_name(std::string_view name);

}  // namespace exfusion
