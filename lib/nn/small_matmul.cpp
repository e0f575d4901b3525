#include "nn/small_matmul.h"

#include "core/instruction_sets.h"
#include "nn/lanes.h"

namespace exfusion {
namespace {

// C [rows, 16 kColumns] = A B with A's element (i, k) at a[i * a_row + k * a_column], accumulated over k in
// registers.
template <int kRows, int kColumns>
[[gnu::always_inline]] inline void matmul_tile(std::int64_t depth, const float* a, std::int64_t a_row,
                                               std::int64_t a_column, const float* b, std::int64_t b_row,
                                               float* c, std::int64_t c_row) {
  Lanes sum[kRows][kColumns] = {};
  for (std::int64_t k = 0; k < depth; ++k) {
    Lanes row[kColumns];
    for (int j = 0; j < kColumns; ++j) row[j] = load_lanes(b + k * b_row + j * kLanes);
    for (int i = 0; i < kRows; ++i) {
      const float factor = a[i * a_row + k * a_column];
      for (int j = 0; j < kColumns; ++j) sum[i][j] += factor * row[j];
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kColumns; ++j) store_lanes(sum[i][j], c + i * c_row + j * kLanes);
  }
}

template <int kColumns>
[[gnu::always_inline]] inline void matmul_columns(std::int64_t rows, std::int64_t depth, const float* a,
                                                  std::int64_t a_row, std::int64_t a_column, const float* b,
                                                  std::int64_t b_row, float* c, std::int64_t c_row) {
  constexpr int kTall = kColumns >= 3 ? 5 : 8;
  std::int64_t i = 0;
  for (; i + kTall <= rows; i += kTall)
    matmul_tile<kTall, kColumns>(depth, a + i * a_row, a_row, a_column, b, b_row, c + i * c_row, c_row);
  for (; i < rows; ++i)
    matmul_tile<1, kColumns>(depth, a + i * a_row, a_row, a_column, b, b_row, c + i * c_row, c_row);
}

}  // namespace

EXFUSION_INSTRUCTION_SETS
void small_matmul(std::int64_t rows, std::int64_t columns, std::int64_t depth, const float* a,
                  std::int64_t a_row, std::int64_t a_column, const float* b, std::int64_t b_row, float* c,
                  std::int64_t c_row) {
  std::int64_t j = 0;
  for (; j + 4 * kLanes <= columns; j += 4 * kLanes)
    matmul_columns<4>(rows, depth, a, a_row, a_column, b + j, b_row, c + j, c_row);
  for (; j + 2 * kLanes <= columns; j += 2 * kLanes)
    matmul_columns<2>(rows, depth, a, a_row, a_column, b + j, b_row, c + j, c_row);
  for (; j < columns; j += kLanes)
    matmul_columns<1>(rows, depth, a, a_row, a_column, b + j, b_row, c + j, c_row);
}

EXFUSION_INSTRUCTION_SETS
void small_transpose(std::int64_t rows, std::int64_t columns, const float* from, std::int64_t from_row,
                     float* to, std::int64_t to_row) {
  for (std::int64_t i = 0; i < rows; i += kLanes) {
    for (std::int64_t j = 0; j < columns; j += kLanes) {
      Lanes tile[kLanes];
      for (std::int64_t k = 0; k < kLanes; ++k)
        tile[k] = i + k < rows ? load_lanes(from + (i + k) * from_row + j) : Lanes{};
      transpose_tile(tile);
      for (std::int64_t k = 0; k < kLanes; ++k) store_lanes(tile[k], to + (j + k) * to_row + i);
    }
  }
}

}  // namespace exfusion
