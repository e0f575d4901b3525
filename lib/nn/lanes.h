// Vectors of 16 floats, for inlining into functions that are compiled for several instruction sets: the
// compiler splits them where registers are narrower.
#pragma once
#include <cstdint>

namespace exfusion {

inline constexpr std::int64_t kLanes = 16;  // matrices of small_matmul.h are padded to this
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));

[[gnu::always_inline]] inline Lanes load_lanes(const float* from) {
  Lanes lanes;
  __builtin_memcpy(&lanes, from, sizeof(Lanes));
  return lanes;
}

[[gnu::always_inline]] inline void store_lanes(const Lanes& lanes, float* to) {
  __builtin_memcpy(to, &lanes, sizeof(Lanes));
}

// The sum, and the largest, of all lanes: halves onto each other.
[[gnu::always_inline]] inline float sum_of_lanes(Lanes x) {
  x += __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  x += __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  x += __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  return x[0] + x[1];
}

[[gnu::always_inline]] inline Lanes larger(const Lanes& a, const Lanes& b) {
  return a > b ? a : b;
}

[[gnu::always_inline]] inline float largest_of_lanes(Lanes x) {
  x = larger(x, __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  x = larger(x, __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  x = larger(x, __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
  return x[0] > x[1] ? x[0] : x[1];
}

// Transposes a tile of 16 rows: in step 1, 2, 4, 8, rows that far apart exchange the blocks off the diagonal.
[[gnu::always_inline]] inline void transpose_tile(Lanes (&row)[kLanes]) {
  for (int i = 0; i < kLanes; i += 2) {
    const Lanes a = row[i], b = row[i + 1];
    row[i] = __builtin_shufflevector(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
    row[i + 1] = __builtin_shufflevector(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
  }
  for (int i = 0; i < kLanes; i += i % 4 == 1 ? 3 : 1) {
    const Lanes a = row[i], b = row[i + 2];
    row[i] = __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
    row[i + 2] = __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  }
  for (int i = 0; i < kLanes; i += i % 8 == 3 ? 5 : 1) {
    const Lanes a = row[i], b = row[i + 4];
    row[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
    row[i + 4] = __builtin_shufflevector(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
  }
  for (int i = 0; i < 8; ++i) {
    const Lanes a = row[i], b = row[i + 8];
    row[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
    row[i + 8] = __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  }
}

}  // namespace exfusion
