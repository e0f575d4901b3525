#include "fusion/learned_weights.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace exfusion {

void learned_weights(const FusionConfig& config, const at::Tensor& z, std::span<float> a) {
  const std::span<const double> logits(z.const_data_ptr<double>(), a.size());
  if (config.normalize != "softmax") {
    std::ranges::transform(logits, a.begin(), [](double x) { return static_cast<float>(x); });
    return;
  }
  std::array<double, kMaxExperts> powers;
  const double largest = std::ranges::max(logits);
  double sum = 0.0;
  for (std::size_t k = 0; k < a.size(); ++k)
    sum += powers[k] = std::exp((logits[k] - largest) / config.temperature);
  for (std::size_t k = 0; k < a.size(); ++k) a[k] = static_cast<float>(powers[k] / sum);
}

void logit_gradients(const FusionConfig& config, std::span<const float> a, std::span<const double> prices,
                     std::span<double> gradient) {
  if (config.normalize != "softmax") {
    std::ranges::copy(prices, gradient.begin());
    return;
  }
  for (std::size_t k = 0; k < prices.size(); ++k) {
    double sum = 0.0;
    for (std::size_t j = 0; j < prices.size(); ++j) sum += a[j] * (prices[k] - prices[j]);
    gradient[k] = a[k] * sum / config.temperature;
  }
}

}  // namespace exfusion
