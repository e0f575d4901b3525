#include "optim/bf16_kernel.h"

#include <algorithm>

#include "core/bfloat16.h"
#include "core/instruction_sets.h"

namespace exfusion {
namespace {

constexpr std::int64_t kBlock = 4096;              // elements that one call of the kernel walks over
constexpr std::int64_t kParallelElements = 32768;  // below, starting threads costs more than it saves

EXFUSION_INSTRUCTION_SETS
void round_elements(std::int64_t n, const float* __restrict x, std::uint16_t* __restrict bf16) {
  for (std::int64_t i = 0; i < n; ++i) bf16[i] = bf16_element(x[i]);
}

EXFUSION_INSTRUCTION_SETS
void round_elements(std::int64_t n, const double* __restrict x, std::uint16_t* __restrict bf16) {
  for (std::int64_t i = 0; i < n; ++i) bf16[i] = bf16_element(static_cast<float>(x[i]));
}

}  // namespace

template <class T>
void round_block(std::int64_t n, const T* x, std::uint16_t* bf16) {
  round_elements(n, x, bf16);
}

void round_to_bf16(std::int64_t n, const float* x, std::uint16_t* bf16) {
#pragma omp parallel for schedule(static) if (n >= kParallelElements)
  for (std::int64_t i = 0; i < n; i += kBlock) round_elements(std::min(kBlock, n - i), x + i, bf16 + i);
}

template void round_block(std::int64_t, const float*, std::uint16_t*);
template void round_block(std::int64_t, const double*, std::uint16_t*);

}  // namespace exfusion
