#include "train/symmetry_alarm.h"

#include <fmt/format.h>

#include <cmath>

namespace exfusion {

bool constant_weights(const FusionConfig& config) {
  const bool trained = config.weights == "memory" || (config.weights == "learned" && config.lr != 0.0);
  return !trained && config.expert_dropout == 0.0 && config.dirichlet == 0.0;
}

bool frozen(const ExpertGeometry& geometry, double decay) {
  return std::abs(1.0 - geometry.difference_cosine) < 1e-4 &&
         std::abs(geometry.difference_ratio / decay - 1.0) < 1e-3;
}

std::string frozen_text(const TrainingState& state) {
  std::string first;
  std::size_t count = 0;
  for (const ExpertBank& bank : state.banks) {
    const ExpertGeometry geometry = measure_geometry(bank, state.decay_product);
    if (!frozen(geometry, state.decay_product)) continue;
    ++count;
    if (first.empty())
      first = fmt::format(
          "{}: cos(D, D at the start) {:.6f}, norm(D) {:.6f} of that at the start, decay alone "
          "leaves {:.6f}",
          bank.name(), geometry.difference_cosine, geometry.difference_ratio, state.decay_product);
  }
  if (count == 0) return "";
  return fmt::format(
      "the experts of {} of {} FFNs differ as at the start and have learned no difference ({})", count,
      state.banks.size(), first);
}

}  // namespace exfusion
