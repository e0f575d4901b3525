#include "analysis/assignment.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace exfusion::analysis {

std::vector<std::size_t> best_assignment(std::span<const double> gain, std::size_t n) {
  if (gain.size() != n * n || !std::ranges::all_of(gain, [](double x) { return std::isfinite(x); }))
    throw std::invalid_argument("an assignment needs n x n finite gains");
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  // Column n stands for "none yet". Reduced costs -gain - row_price - column_price are never negative and are
  // 0 where a row is assigned.
  std::vector<double> row_price(n, 0.0), column_price(n + 1, 0.0), distance(n);
  std::vector<std::size_t> row_of(n + 1, n), before(n);
  std::vector<char> done(n + 1);
  for (std::size_t row = 0; row < n; ++row) {
    row_of[n] = row;
    std::ranges::fill(distance, kInfinity);
    std::ranges::fill(done, char{0});
    std::size_t column = n;
    do {  // the nearest column that is not done, until one is free
      done[column] = 1;
      const std::size_t from = row_of[column];
      const double* gains = gain.data() + from * n;
      double least = kInfinity;
      std::size_t next = n;
      for (std::size_t j = 0; j < n; ++j) {
        if (done[j]) continue;
        const double cost = -gains[j] - row_price[from] - column_price[j];
        if (cost < distance[j]) {
          distance[j] = cost;
          before[j] = column;
        }
        if (distance[j] < least) {
          least = distance[j];
          next = j;
        }
      }
      for (std::size_t j = 0; j <= n; ++j) {
        if (done[j]) {
          row_price[row_of[j]] += least;
          column_price[j] -= least;
        } else if (j < n) {
          distance[j] -= least;
        }
      }
      column = next;
    } while (row_of[column] != n);
    while (column != n) {  // every row on the way moves one column on
      row_of[column] = row_of[before[column]];
      column = before[column];
    }
  }
  std::vector<std::size_t> assigned(n);
  for (std::size_t j = 0; j < n; ++j) assigned[row_of[j]] = j;
  return assigned;
}

}  // namespace exfusion::analysis
