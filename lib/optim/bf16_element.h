// Rounding to bf16, the upper half of a float. The one place of this arithmetic, as adamw_element.h.
#pragma once
#include <cstdint>
#include <cstring>

#include "optim/adamw_element.h"

namespace exfusion {

// The bits of x rounded to nearest even; every NaN becomes 0xffff, as libtorch's vector code has it.
EXFUSION_HOST_DEVICE inline std::uint16_t bf16_element(float x) {
  std::uint32_t bits = 0;
  memcpy(&bits, &x, sizeof bits);  // std::bit_cast is none of device code
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0xffffu : rounded);
}

}  // namespace exfusion
