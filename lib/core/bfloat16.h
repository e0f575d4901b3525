// The bits of a bfloat16 for kernels that know no torch: the upper half of a float's. Layout of
// at::BFloat16.
#pragma once
#include <bit>
#include <cstdint>

namespace exfusion {

struct Bfloat16 {
  std::uint16_t bits;
};

inline float to_float(float x) {
  return x;
}

inline float to_float(Bfloat16 x) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16);
}

// To the nearest, ties to even; a NaN stays one.
template <class T>
inline T from_float(float x);

template <>
inline float from_float<float>(float x) {
  return x;
}

template <>
inline Bfloat16 from_float<Bfloat16>(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return {static_cast<std::uint16_t>(x == x ? rounded : 0x7fc0u)};
}

}  // namespace exfusion
