// Sums over rows whose bits do not depend on the number of threads: a fixed number of chunks of rows, each
// summed in order, then the chunks in order.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

namespace exfusion {

inline constexpr std::int64_t kRowChunks = 32;

// Calls add_row(row, partial) for every row, in parallel over chunks; it adds the row's contribution to
// partial [columns]. sums [columns] receives the total.
void sum_over_row_chunks(std::int64_t rows, std::int64_t columns, float* sums, const auto& add_row) {
  // One buffer per calling thread that only grows: nothing is allocated from step to step.
  static thread_local std::vector<float> buffer;
  buffer.resize(std::max(buffer.size(), static_cast<std::size_t>(kRowChunks * columns)));
  float* const partial = buffer.data();  // [kRowChunks, columns]
#pragma omp parallel for schedule(static)
  for (std::int64_t chunk = 0; chunk < kRowChunks; ++chunk) {
    float* const own = partial + chunk * columns;
    std::fill_n(own, columns, 0.0f);
    const std::int64_t end = rows * (chunk + 1) / kRowChunks;
    for (std::int64_t row = rows * chunk / kRowChunks; row < end; ++row) add_row(row, own);
  }
  std::copy_n(partial, columns, sums);
  for (std::int64_t chunk = 1; chunk < kRowChunks; ++chunk) {
    for (std::int64_t i = 0; i < columns; ++i) sums[i] += partial[chunk * columns + i];
  }
}

}  // namespace exfusion
