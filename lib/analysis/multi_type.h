// The multi-type congestion game: tokens fall into J types with qualities of their own, congestion acts on
// the sum of their loads (reconstructed: analysis/game.h).
#pragma once
#include <vector>

#include "analysis/bootstrap.h"
#include "analysis/trace.h"

namespace exfusion::analysis {

inline constexpr std::size_t kTypeCounts[] = {4, 8, 16, 32};
inline constexpr std::size_t kHeadlineTypes = 8;

// k-means with k-means++ starts on rows of `points` [n, size]: the type of each row. Deterministic.
struct Clusters {
  std::vector<float> centres;       // [types, size]
  std::vector<std::uint32_t> type;  // [n]
};
Clusters k_means(const std::vector<float>& points, std::size_t size, std::size_t types, std::uint32_t layer);

// Held-out L1 of one J: types, qualities (mean logit) and weights from the sampled tokens of even batches,
// gamma by L1 to the even batches' loads, error against the odd ones'.
struct MultiType {
  std::size_t types = 0;
  double gamma = 0.0, l1 = 0.0;
  double l1_single = 0.0;  // the same tokens as one type
  double l1_random = 0.0;  // a random partition into types of the same weights: the null
  double improvement() const { return 1.0 - l1 / l1_single; }
  double improvement_random() const { return 1.0 - l1_random / l1_single; }
};

struct MultiTypeTable {
  std::vector<MultiType> rows;  // for each of kTypeCounts that the sample is large enough for
  Quantity l1;                  // of kHeadlineTypes
};
MultiTypeTable multi_type(const TraceLayer& layer, std::size_t experts);

}  // namespace exfusion::analysis
