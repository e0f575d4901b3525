#include "prune/weight_scores.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "io/part_pieces.h"

namespace exfusion {

std::vector<std::string> weight_score_names() {
  return {"aimer", "weight_norm", "router_norm"};
}

bool needs_weights_alone(const std::string& score) {
  return std::ranges::count(weight_score_names(), score) > 0;
}

bool scores_router(const std::string& score) {
  return score == "router_norm";
}

void WeightSums::add(const at::Tensor& weights) {
  for_each_piece({.values = weights}, [&](std::int64_t, const at::Tensor& piece) {
    const at::Tensor values = piece.to(at::kFloat);
    const float* value = values.const_data_ptr<float>();
    for (std::int64_t i = 0; i < values.numel(); ++i) {
      const double one = value[i];
      magnitudes += std::abs(one);
      squares += one * one;
    }
  });
  count += static_cast<double>(weights.numel());
}

double weight_score(const std::string& score, const WeightSums& sums, const std::string& expert) {
  if (!std::isfinite(sums.squares)) throw FormatError(expert + ": holds weights that are not finite");
  if (score != "aimer") return std::sqrt(sums.squares);
  if (sums.squares == 0.0) return -std::numeric_limits<double>::infinity();
  return -(sums.magnitudes / sums.count) / std::sqrt(sums.squares / sums.count);
}

}  // namespace exfusion
