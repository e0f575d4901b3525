// Matrices of bf16 laid out for the processor's products of pairs: a vector holds one pair of neighbours
// along k for each of 16 columns. For x86-64 with AVX512-BF16 only.
#pragma once
#include <immintrin.h>

#include <algorithm>

#include "core/bfloat16.h"
#include "nn/lanes.h"

#define EXFUSION_AVX512_BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))

namespace exfusion {

using Pair = std::uint32_t;
inline constexpr std::int64_t kPanelVectors = 3;
inline constexpr std::int64_t kPackedRows = 16;     // one below the other, on the way into panels
inline constexpr std::int64_t kAheadColumns = 128;  // prefetched of rows that come from memory

// Columns in panels of about equal width; each holds [pairs, width] at kLanes * first(panel) * pairs.
struct Panels {
  explicit Panels(std::int64_t n, std::int64_t panel_vectors = kPanelVectors)
      : columns(n),
        vectors((n + kLanes - 1) / kLanes),
        count((vectors + panel_vectors - 1) / panel_vectors) {}
  std::int64_t first(std::int64_t panel) const { return panel * vectors / count; }  // vector
  std::int64_t columns, vectors, count;
};

// Which columns of the vector at `column` exist.
inline __mmask16 columns_from(std::int64_t column, std::int64_t columns) {
  return static_cast<__mmask16>((1u << std::clamp<std::int64_t>(columns - column, 0, kLanes)) - 1);
}

// Rows [first_row, end_row) of b [k, n] into their place in a panel of `vectors` vectors from `column` on.
EXFUSION_AVX512_BF16 inline void pack_rows(std::int64_t first_row, std::int64_t end_row, std::int64_t k,
                                           std::int64_t n, const Bfloat16* b, std::int64_t column,
                                           std::int64_t vectors, Pair* panel) {
  const __mmask16 last = columns_from(column + (vectors - 1) * kLanes, n);
  Pair* to = panel + first_row / 2 * vectors * kLanes;
  for (std::int64_t row = first_row; row < end_row; row += 2) {
    const Bfloat16* from = b + row * n + column;
    const __mmask16 second_row = row + 1 < k ? 0xffff : 0;
    for (std::int64_t v = 0; v < vectors; ++v, from += kLanes, to += kLanes) {
      _mm_prefetch(from + kAheadColumns, _MM_HINT_T0);
      _mm_prefetch(from + n + kAheadColumns, _MM_HINT_T0);
      const __mmask16 there = v + 1 < vectors ? __mmask16{0xffff} : last;
      const __m512i low = _mm512_maskz_cvtepu16_epi32(there, _mm256_maskz_loadu_epi16(there, from));
      const __mmask16 both = there & second_row;
      const __m512i high = _mm512_maskz_cvtepu16_epi32(both, _mm256_maskz_loadu_epi16(both, from + n));
      _mm512_storeu_si512(to, _mm512_or_si512(low, _mm512_maskz_slli_epi32(both, high, 16)));
    }
  }
}

// b [k, n] into its panels.
inline void pack(const Panels& panels, std::int64_t k, const Bfloat16* b, Pair* to) {
  const std::int64_t pairs = (k + 1) / 2;
#pragma omp parallel for schedule(static)
  for (std::int64_t row = 0; row < k; row += kPackedRows) {
    for (std::int64_t panel = 0; panel < panels.count; ++panel) {
      const std::int64_t first = panels.first(panel), vectors = panels.first(panel + 1) - first;
      pack_rows(row, std::min(k, row + kPackedRows), k, panels.columns, b, first * kLanes, vectors,
                to + first * kLanes * pairs);
    }
  }
}

// One panel of b^T, b [n, k].
EXFUSION_AVX512_BF16 inline void pack_columns(std::int64_t n, std::int64_t k, const Bfloat16* b,
                                              std::int64_t column, std::int64_t vectors, Pair* panel) {
  const std::int64_t pairs = k / 2;
  for (std::int64_t v = 0; v < vectors; ++v) {
    for (std::int64_t pair = 0; pair < pairs; pair += kLanes) {
      const __mmask16 there = columns_from(pair, pairs);
      Lanes tile[kLanes];
      for (std::int64_t i = 0; i < kLanes; ++i) {
        const std::int64_t row = column + v * kLanes + i;
        _mm_prefetch(b + row * k + 2 * pair + 4 * kLanes, _MM_HINT_T0);
        tile[i] = row < n ? _mm512_maskz_loadu_ps(there, b + row * k + 2 * pair) : Lanes{};
      }
      transpose_tile(tile);
      for (std::int64_t i = 0; i < std::min(kLanes, pairs - pair); ++i)
        _mm512_storeu_ps(panel + ((pair + i) * vectors + v) * kLanes, tile[i]);
    }
  }
}

// b^T into its panels, b [n, k], k even.
inline void pack_transposed(const Panels& panels, std::int64_t k, const Bfloat16* b, Pair* to) {
#pragma omp parallel for schedule(static)
  for (std::int64_t panel = 0; panel < panels.count; ++panel) {
    const std::int64_t first = panels.first(panel);
    pack_columns(panels.columns, k, b, first * kLanes, panels.first(panel + 1) - first,
                 to + first * kLanes * (k / 2));
  }
}

}  // namespace exfusion
