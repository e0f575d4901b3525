#include "nn/bf16_matmul.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#include "nn/bf16_panels.h"

namespace exfusion {
namespace {

// A tile of the result is kTileRows rows by up to kPanelVectors vectors; its sums stay in registers.
constexpr std::int64_t kLine = 64;  // bytes of a cache line
constexpr std::int64_t kTileRows = 8;
constexpr std::int64_t kChunkTiles = 16;    // of one panel, in turn, by one thread
constexpr std::int64_t kSlab = 1600;        // rows that are packed and multiplied while they are in the cache
constexpr std::int64_t kCachedPairs = 256;  // of a panel that stays in the first cache by itself
constexpr std::int64_t kAheadPairs = 8;     // prefetched of a longer one

// Memory of the calling thread that only grows: nothing is allocated from step to step.
template <int which>
Pair* scratch(std::int64_t pairs) {
  struct Free {
    void operator()(Pair* memory) const { std::free(memory); }
  };
  static thread_local std::unique_ptr<Pair, Free> memory;
  static thread_local std::int64_t size = 0;
  if (pairs > size) {
    const std::int64_t bytes = (pairs * std::int64_t{sizeof(Pair)} + kLine - 1) / kLine * kLine;
    memory.reset(static_cast<Pair*>(
        std::aligned_alloc(static_cast<std::size_t>(kLine), static_cast<std::size_t>(bytes))));
    if (!memory) throw std::bad_alloc();
    size = pairs;
  }
  return memory.get();
}

// The factors of one tile: the pairs of a at [row * row_step + pair * pair_step], of b at [pair, vectors].
struct Tile {
  const Pair *a, *b;
  std::int64_t pairs, row_step, pair_step;
};

// Where a tile goes: `rows` and `columns` of it exist, in rows of n.
template <class T>
struct Target {
  T* c;
  std::int64_t rows, columns, n;
  const Bfloat16* bias;  // of the columns, or null
  bool add;              // to what is there
};

template <int vectors, bool prefetch>
EXFUSION_AVX512_BF16 inline void multiply(const Tile& tile, __m512 (&sums)[kTileRows][vectors]) {
  const Pair *a = tile.a, *b = tile.b;
  const std::int64_t row_step = tile.row_step, pair_step = tile.pair_step;
  for (auto& row : sums) {
    for (__m512& sum : row) sum = _mm512_setzero_ps();
  }
  for (std::int64_t pair = 0; pair < tile.pairs; ++pair, a += pair_step, b += vectors * kLanes) {
    __m512bh right[vectors];
    for (int v = 0; v < vectors; ++v) {
      right[v] = (__m512bh)_mm512_loadu_si512(b + v * kLanes);
      if constexpr (prefetch) _mm_prefetch(b + (v + kAheadPairs * vectors) * kLanes, _MM_HINT_T0);
    }
    if constexpr (prefetch) _mm_prefetch(a + kAheadPairs * pair_step, _MM_HINT_T0);
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
      int left = 0;
      __builtin_memcpy(&left, a + r * row_step, sizeof left);
      for (int v = 0; v < vectors; ++v)
        sums[r][v] = _mm512_dpbf16_ps(sums[r][v], (__m512bh)_mm512_set1_epi32(left), right[v]);
    }
  }
}

EXFUSION_AVX512_BF16 inline void store(__m512 sum, __mmask16 there, bool add, float* to) {
  _mm512_mask_storeu_ps(to, there, add ? sum + _mm512_maskz_loadu_ps(there, to) : sum);
}

EXFUSION_AVX512_BF16 inline void store(__m512 sum, __mmask16 there, bool, Bfloat16* to) {
  _mm256_mask_storeu_epi16(to, there, (__m256i)_mm512_cvtneps_pbh(sum));
}

template <int vectors, bool prefetch, class T>
EXFUSION_AVX512_BF16 void tile_product(const Tile& tile, const Target<T>& target) {
  __m512 sums[kTileRows][vectors];
  for (int r = 0; r < kTileRows; ++r) {  // the lines that the sums go to come while they are computed
    const T* const row = target.c + r * target.n;
    for (int i = 0; i < vectors * kLanes; i += kLine / std::int64_t{sizeof(T)})
      __builtin_prefetch(row + i, 1);
    __builtin_prefetch(row + vectors * kLanes - 1, 1);
  }
  multiply<vectors, prefetch>(tile, sums);
#pragma GCC unroll 3
  for (int v = 0; v < vectors; ++v) {
    const __mmask16 there = columns_from(v * kLanes, target.columns);
    __m512 bias = _mm512_setzero_ps();
    if (target.bias) {
      const __m256i bits = _mm256_maskz_loadu_epi16(there, target.bias + v * kLanes);
      bias = (__m512)_mm512_maskz_slli_epi32(there, _mm512_maskz_cvtepu16_epi32(there, bits), 16);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
      if (r < target.rows) store(sums[r][v] + bias, there, target.add, target.c + r * target.n + v * kLanes);
    }
  }
}

template <int vectors, class T>
void tile_product(const Tile& tile, const Target<T>& target) {
  if (tile.pairs > kCachedPairs)
    tile_product<vectors, true>(tile, target);
  else
    tile_product<vectors, false>(tile, target);
}

// c [m, n] from the panels of b. `by_rows`: all panels for some rows, then the next rows; otherwise all rows
// for a panel. a_tile(row): where the pairs of kTileRows rows from `row` on start.
template <class T>
void multiply_panels(std::int64_t m, const Panels& panels, const Tile& tile, const Target<T>& all,
                     bool by_rows, const auto& a_tile) {
  const std::int64_t tiles = (m + kTileRows - 1) / kTileRows,
                     chunks = (tiles + kChunkTiles - 1) / kChunkTiles;
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < chunks * panels.count; ++i) {
    const std::int64_t chunk = by_rows ? i / panels.count : i % chunks;
    const std::int64_t panel = by_rows ? i % panels.count : i / chunks;
    const std::int64_t first = panels.first(panel), vectors = panels.first(panel + 1) - first;
    const std::int64_t column = first * kLanes, end = std::min(tiles, (chunk + 1) * kChunkTiles);
    for (std::int64_t row = chunk * kChunkTiles * kTileRows; row < end * kTileRows; row += kTileRows) {
      Tile here = tile;
      here.a = a_tile(row);
      here.b = tile.b + column * tile.pairs;
      const Target<T> target{.c = all.c + row * all.n + column,
                             .rows = m - row,
                             .columns = all.n - column,
                             .n = all.n,
                             .bias = all.bias ? all.bias + column : nullptr,
                             .add = all.add};
      if (vectors == 3)
        tile_product<3>(here, target);
      else if (vectors == 2)
        tile_product<2>(here, target);
      else
        tile_product<1>(here, target);
    }
  }
}

// c = a b + bias for the rows of a [m, k] as they lie in memory.
void multiply_rows(std::int64_t m, std::int64_t k, const Bfloat16* a, const Panels& panels, const Pair* b,
                   const Bfloat16* bias, Bfloat16* c) {
  const std::int64_t rest = m % kTileRows, whole = m - rest;
  Pair* const last = scratch<1>(kTileRows * k / 2);  // the last rows, in a tile that may be read as a whole
  std::copy_n(a + whole * k, rest * k, reinterpret_cast<Bfloat16*>(last));
  const Target<Bfloat16> target{c, m, panels.columns, panels.columns, bias, false};
  multiply_panels(m, panels, {nullptr, b, k / 2, k / 2, 1}, target, /*by_rows=*/true, [&](std::int64_t row) {
    return row < whole ? reinterpret_cast<const Pair*>(a + row * k) : last;
  });
}

}  // namespace

bool has_bf16_matmul() {
  static const bool has = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                          !__builtin_cpu_supports("amx-bf16");
  return has;
}

void bf16_product_transposed(std::int64_t m, std::int64_t n, std::int64_t k, const Bfloat16* a,
                             const Bfloat16* b, const Bfloat16* bias, Bfloat16* c) {
  const Panels panels(n);
  Pair* const packed = scratch<0>(panels.vectors * kLanes * (k / 2));
  pack_transposed(panels, k, b, packed);
  multiply_rows(m, k, a, panels, packed, bias, c);
}

void bf16_product(std::int64_t m, std::int64_t n, std::int64_t k, const Bfloat16* a, const Bfloat16* b,
                  Bfloat16* c) {
  const Panels panels(n);
  Pair* const packed = scratch<0>(panels.vectors * kLanes * (k / 2));
  pack(panels, k, b, packed);
  multiply_rows(m, k, a, panels, packed, nullptr, c);
}

void bf16_transposed_product(std::int64_t m, std::int64_t n, std::int64_t k, const Bfloat16* a,
                             const Bfloat16* b, float* c) {
  const Panels panels(n), columns_of_a(m, 1);
  const std::int64_t most = (std::min(k, kSlab) + 1) / 2;
  Pair* const right = scratch<0>(panels.vectors * kLanes * most);
  Pair* const left = scratch<1>(columns_of_a.vectors * kLanes * most);
  for (std::int64_t row = 0; row < k; row += kSlab) {
    const std::int64_t rows = std::min(kSlab, k - row), pairs = (rows + 1) / 2;
    pack(panels, rows, b + row * n, right);
    pack(columns_of_a, rows, a + row * m, left);
    const Target<float> target{c, m, n, n, nullptr, row > 0};
    multiply_panels(
        m, panels, {nullptr, right, pairs, 1, kLanes}, target, /*by_rows=*/false,
        [&](std::int64_t column) { return left + column / kLanes * kLanes * pairs + column % kLanes; });
  }
}

}  // namespace exfusion

#else

#include <stdexcept>

namespace exfusion {

bool has_bf16_matmul() {
  return false;
}
void bf16_product_transposed(std::int64_t, std::int64_t, std::int64_t, const Bfloat16*, const Bfloat16*,
                             const Bfloat16*, Bfloat16*) {
  throw std::logic_error("no bf16_product_transposed in this build");
}
void bf16_product(std::int64_t, std::int64_t, std::int64_t, const Bfloat16*, const Bfloat16*, Bfloat16*) {
  throw std::logic_error("no bf16_product in this build");
}
void bf16_transposed_product(std::int64_t, std::int64_t, std::int64_t, const Bfloat16*, const Bfloat16*,
                             float*) {
  throw std::logic_error("no bf16_transposed_product in this build");
}

}  // namespace exfusion

#endif
