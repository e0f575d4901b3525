#include "analysis/probe.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

namespace exfusion::analysis {
namespace {

// By what the experts of one token are ordered for the selection. Without a bias that is the logit itself:
// scores rise with it.
class SelectionOrder {
 public:
  SelectionOrder(const float* logits, const TraceLayer& layer, std::size_t experts, RouterScores scores)
      : logits_(logits), bias_(layer.selection_bias), kind_(scores), keys_(experts) {
    if (shares_one_sum()) {
      top_ = *std::max_element(logits, logits + experts);
      for (std::size_t i = 0; i < experts; ++i) total_ += std::exp(logits[i] - top_);
    }
    for (std::size_t i = 0; i < experts; ++i) keys_[i] = key(i, 0.0);
  }
  const std::vector<double>& keys() const { return keys_; }
  // Whether expert i is selected with its logit raised by `shift`. `rival`: the key it has to beat, that of
  // the K-th of the others.
  bool selected(std::size_t i, double shift, double rival, std::size_t top_k) const {
    if (!shares_one_sum()) return key(i, shift) > rival;
    const double raised = std::exp(logits_[i] + shift - top_);
    const double total = total_ + raised - std::exp(logits_[i] - top_);  // the others' scores fall with it
    std::size_t ahead = 0;
    for (std::size_t j = 0; j < keys_.size(); ++j)
      ahead += j != i && (keys_[j] - bias_[j]) * total_ / total + bias_[j] > raised / total + bias_[i];
    return ahead < top_k;
  }

 private:
  bool shares_one_sum() const { return !bias_.empty() && kind_ == RouterScores::softmax; }
  double key(std::size_t i, double shift) const {
    const double z = logits_[i] + shift;
    if (bias_.empty()) return z;
    if (kind_ == RouterScores::sigmoid) return 1.0 / (1.0 + std::exp(-z)) + bias_[i];
    return std::exp(z - top_) / total_ + bias_[i];
  }
  const float* logits_;
  const std::vector<double>& bias_;
  RouterScores kind_;
  std::vector<double> keys_;
  double top_ = 0.0, total_ = 0.0;
};

double log_odds(double count, double slots) {
  return std::log(count / (slots - count));
}

}  // namespace

std::optional<double> probe_gamma(const TraceLayer& layer, std::size_t experts, std::size_t top_k,
                                  RouterScores scores) {
  if (layer.logits.empty() || top_k >= experts) return std::nullopt;
  std::vector<double> raised(experts, 0.0), lowered(experts, 0.0);
  std::vector<double> order(experts);
  for (std::size_t s = 0; s < layer.sampled(); ++s) {
    const SelectionOrder token(layer.logits.data() + s * experts, layer, experts, scores);
    order = token.keys();
    const auto kth = order.begin() + static_cast<std::ptrdiff_t>(top_k) - 1;
    std::nth_element(order.begin(), kth, order.end(), std::greater<>());
    const double last_in = *kth, first_out = *std::max_element(kth + 1, order.end());
    for (std::size_t i = 0; i < experts; ++i) {
      const bool in = token.keys()[i] >= last_in;
      raised[i] += in || token.selected(i, kProbeShift, last_in, top_k);
      lowered[i] += in && token.selected(i, -kProbeShift, first_out, top_k);
    }
  }
  const double slots = static_cast<double>(layer.sampled() * top_k);
  double slope = 0.0;
  std::size_t used = 0;
  for (std::size_t i = 0; i < experts; ++i) {
    if (lowered[i] == 0.0 || raised[i] >= slots) continue;
    slope += (log_odds(raised[i], slots) - log_odds(lowered[i], slots)) / (2.0 * kProbeShift);
    ++used;
  }
  if (2 * used < experts || !(slope > 0.0)) return std::nullopt;
  return static_cast<double>(experts) * (static_cast<double>(used) / slope - 1.0);
}

std::vector<std::uint32_t> sampled_routes(const TraceLayer& layer, std::size_t experts, std::size_t top_k,
                                          RouterScores scores) {
  std::vector<std::uint32_t> routes(layer.sampled() * top_k), order(experts);
  for (std::size_t s = 0; s < layer.sampled(); ++s) {
    const SelectionOrder token(layer.logits.data() + s * experts, layer, experts, scores);
    const std::vector<double>& keys = token.keys();
    std::iota(order.begin(), order.end(), 0u);
    std::partial_sort(
        order.begin(), order.begin() + static_cast<std::ptrdiff_t>(top_k), order.end(),
        [&](std::uint32_t a, std::uint32_t b) { return keys[a] > keys[b] || (keys[a] == keys[b] && a < b); });
    std::copy_n(order.begin(), top_k, routes.begin() + static_cast<std::ptrdiff_t>(s * top_k));
  }
  return routes;
}

}  // namespace exfusion::analysis
