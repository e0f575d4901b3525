#include "fusion/weight_noise.h"

#include <algorithm>
#include <cmath>

#include "core/random.h"
#include "fusion/expert_statistics.h"

namespace exfusion {
namespace {

void draw_dirichlet(std::vector<float>& a, double concentration, CounterRandom& random) {
  const double sum = sum_of_sizes(a);
  std::vector<double> alpha;
  for (const float x : a) alpha.push_back(concentration * static_cast<double>(a.size()) * std::abs(x) / sum);
  const std::vector<double> drawn = random.dirichlet(alpha);
  for (std::size_t k = 0; k < a.size(); ++k) a[k] = static_cast<float>(std::copysign(sum * drawn[k], a[k]));
}

void drop_experts(std::vector<float>& a, CounterRandom& random) {
  const double sum = sum_of_sizes(a);
  const std::size_t kept = random.below(static_cast<std::uint32_t>(a.size()));
  for (std::size_t k = 0; k < a.size(); ++k) {
    if (random.uniform() < 0.5 && k != kept) a[k] = 0.0f;
  }
  const double left = sum_of_sizes(a);
  for (float& x : a) x = static_cast<float>(left > 0.0 ? x * sum / left : x);
}

}  // namespace

std::optional<std::vector<float>> noisy_weights(const FusionConfig& config, const std::vector<float>& a,
                                                std::uint64_t seed, std::int64_t step, std::int64_t ffn) {
  if (config.expert_dropout <= 0.0 && config.dirichlet <= 0.0) return std::nullopt;
  const double sum = sum_of_sizes(a);
  if (!(sum > 0.0) || !std::isfinite(sum)) return std::nullopt;  // a non-finite step will be skipped
  CounterRandom random(seed, Draw::weight_noise, static_cast<std::uint32_t>(step),
                       static_cast<std::uint32_t>(ffn));
  const bool drops = random.uniform() < config.expert_dropout;
  if (!drops && config.dirichlet <= 0.0) return std::nullopt;
  std::vector<float> noisy = a;
  if (config.dirichlet > 0.0) draw_dirichlet(noisy, config.dirichlet, random);
  if (drops) drop_experts(noisy, random);
  return noisy;
}

}  // namespace exfusion
