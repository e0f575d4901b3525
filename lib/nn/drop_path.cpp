#include "nn/drop_path.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/random.h"

namespace exfusion {

at::Tensor drop_path_factors(const std::vector<double>& rates, std::uint64_t seed, std::int64_t epoch,
                             std::span<const std::int64_t> samples) {
  if (std::all_of(rates.begin(), rates.end(), [](double rate) { return rate == 0.0; })) return {};
  const auto n = static_cast<std::int64_t>(samples.size()),
             branches = static_cast<std::int64_t>(rates.size());
  const auto factors = at::ones({n, branches}, at::kFloat);
  auto* factor = factors.data_ptr<float>();
  for (const auto sample : samples) {
    for (std::size_t branch = 0; branch < rates.size(); ++branch, ++factor) {
      const double rate = rates[branch];
      if (rate == 0.0) continue;
      CounterRandom random(seed, Draw::drop_path, static_cast<std::uint32_t>(epoch),
                           static_cast<std::uint32_t>(sample), static_cast<std::uint32_t>(branch));
      *factor = random.uniform() < rate ? 0.0f : static_cast<float>(1.0 / (1.0 - rate));
    }
  }
  return factors;
}

}  // namespace exfusion
