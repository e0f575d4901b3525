// Products and transposes of fp32 matrices that fit in the cache (one head's attention).
#pragma once
#include <cstdint>

namespace exfusion {

// C [rows, columns] = A B for B [depth, columns]; A's element (i, k) is a[i * a_row + k * a_column], rows of
// B and C are b_row and c_row apart. columns is a multiple of kLanes (nn/lanes.h).
void small_matmul(std::int64_t rows, std::int64_t columns, std::int64_t depth, const float* a,
                  std::int64_t a_row, std::int64_t a_column, const float* b, std::int64_t b_row, float* c,
                  std::int64_t c_row);

// to [columns, to_row] = from [rows, from_row] transposed, both padded to whole tiles of kLanes; the padding
// is written as zeros, rows beyond `rows` are not read.
void small_transpose(std::int64_t rows, std::int64_t columns, const float* from, std::int64_t from_row,
                     float* to, std::int64_t to_row);

}  // namespace exfusion
