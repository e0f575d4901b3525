#include "fusion/weight_noise.h"

#include <array>
#include <cmath>

#include "core/random.h"
#include "fusion/expert_statistics.h"

namespace exfusion {
namespace {

void draw_dirichlet(std::span<float> a, double concentration, CounterRandom& random) {
  const double sum = sum_of_sizes(a);
  std::array<double, kMaxExperts> drawn;
  for (std::size_t k = 0; k < a.size(); ++k)
    drawn[k] = concentration * static_cast<double>(a.size()) * std::abs(a[k]) / sum;
  random.dirichlet(std::span(drawn).first(a.size()));
  for (std::size_t k = 0; k < a.size(); ++k) a[k] = static_cast<float>(std::copysign(sum * drawn[k], a[k]));
}

void drop_experts(std::span<float> a, CounterRandom& random) {
  const double sum = sum_of_sizes(a);
  const std::size_t kept = random.below(static_cast<std::uint32_t>(a.size()));
  for (std::size_t k = 0; k < a.size(); ++k) {
    if (random.uniform() < 0.5 && k != kept) a[k] = 0.0f;
  }
  const double left = sum_of_sizes(a);
  for (float& x : a) x = static_cast<float>(left > 0.0 ? x * sum / left : x);
}

}  // namespace

bool add_weight_noise(const FusionConfig& config, std::span<float> a, std::uint64_t seed, std::int64_t step,
                      std::int64_t ffn) {
  if (config.expert_dropout <= 0.0 && config.dirichlet <= 0.0) return false;
  const double sum = sum_of_sizes(a);
  if (!(sum > 0.0) || !std::isfinite(sum)) return false;  // a non-finite step will be skipped
  CounterRandom random(seed, Draw::weight_noise, static_cast<std::uint32_t>(step),
                       static_cast<std::uint32_t>(ffn));
  const bool drops = random.uniform() < config.expert_dropout;
  if (config.dirichlet > 0.0) draw_dirichlet(a, config.dirichlet, random);
  if (drops) drop_experts(a, random);
  return drops || config.dirichlet > 0.0;
}

}  // namespace exfusion
