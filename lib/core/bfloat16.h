// bfloat16, the upper half of a float, for kernels that know no torch: the one place of its arithmetic.
#pragma once
#include <cstdint>
#include <cstring>

#include "core/host_device.h"

namespace exfusion {

// The bits of x rounded to nearest even; every NaN becomes 0xffff, as libtorch's vector code has it.
EXFUSION_HOST_DEVICE inline std::uint16_t bf16_element(float x) {
  std::uint32_t bits = 0;
  memcpy(&bits, &x, sizeof bits);  // std::bit_cast is none of device code
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0xffffu : rounded);
}

// Layout of at::BFloat16.
struct Bfloat16 {
  std::uint16_t bits;
};

inline float to_float(float x) {
  return x;
}

inline float to_float(Bfloat16 x) {
  const std::uint32_t bits = static_cast<std::uint32_t>(x.bits) << 16;
  float result = 0.0f;
  memcpy(&result, &bits, sizeof result);
  return result;
}

// x in type T: float, Bfloat16.
template <class T>
inline T from_float(float x);

template <>
inline float from_float<float>(float x) {
  return x;
}

template <>
inline Bfloat16 from_float<Bfloat16>(float x) {
  return {bf16_element(x)};
}

}  // namespace exfusion
