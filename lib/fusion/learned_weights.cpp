#include "fusion/learned_weights.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace exfusion {

std::vector<float> learned_weights(const FusionConfig& config, const at::Tensor& z) {
  const auto* logits = z.const_data_ptr<double>();
  std::vector<double> a(logits, logits + z.numel());
  if (config.normalize == "softmax") {
    const double largest = *std::max_element(a.begin(), a.end());
    double sum = 0.0;
    for (double& x : a) sum += x = std::exp((x - largest) / config.temperature);
    for (double& x : a) x /= sum;
  }
  return {a.begin(), a.end()};
}

std::vector<double> logit_gradients(const FusionConfig& config, const std::vector<float>& a,
                                    const std::vector<double>& prices) {
  if (config.normalize != "softmax") return prices;
  std::vector<double> gradient(prices.size());
  for (std::size_t k = 0; k < prices.size(); ++k) {
    double sum = 0.0;
    for (std::size_t j = 0; j < prices.size(); ++j) sum += a[j] * (prices[k] - prices[j]);
    gradient[k] = a[k] * sum / config.temperature;
  }
  return gradient;
}

}  // namespace exfusion
