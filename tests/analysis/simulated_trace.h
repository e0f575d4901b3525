// Layers of a trace with a known truth.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <numeric>
#include <vector>

#include "analysis/trace.h"
#include "core/random.h"

namespace exfusion::analysis {

// A Gaussian router: logits bias + common * (one draw for all experts of a token) + sigma * noise; the top_k
// largest of logit - price * (share of slots the expert had so far) are selected.
struct SimulatedLayer {
  std::vector<double> bias;
  double sigma = 1.0;
  std::size_t top_k = 1;
  std::size_t batches = 1, tokens = 1;  // tokens: per batch
  std::size_t sampled = 0;              // of these, in the sample
  double common = 0.0, price = 0.0;
  std::uint32_t seed = 0;
};

inline TraceLayer simulated_layer(const SimulatedLayer& of) {
  const std::size_t experts = of.bias.size();
  TraceLayer layer;
  std::vector<double> z(experts), payoff(experts), load(experts, 1.0);
  std::vector<std::size_t> order(experts);
  CounterRandom random(of.seed, Draw::synthetic, 1);
  for (std::size_t b = 0; b < of.batches; ++b) {
    layer.tokens.push_back(static_cast<double>(of.tokens));
    for (std::vector<double>* sums : {&layer.count, &layer.sum_logit, &layer.sum_logit_sq, &layer.sum_prob})
      sums->resize((b + 1) * experts, 0.0);
    for (std::size_t t = 0; t < of.tokens; ++t) {
      const double common = of.common * random.normal();
      const double slots = std::reduce(load.begin(), load.end());
      double total = 0.0;
      for (std::size_t i = 0; i < experts; ++i) {
        z[i] = of.bias[i] + common + of.sigma * random.normal();
        payoff[i] = z[i] - of.price * load[i] / slots;
        total += std::exp(z[i]);
      }
      std::iota(order.begin(), order.end(), 0u);
      std::ranges::sort(order, [&](std::size_t a, std::size_t c) { return payoff[a] > payoff[c]; });
      for (std::size_t k = 0; k < of.top_k; ++k) {
        layer.count[b * experts + order[k]] += 1.0;
        load[order[k]] += 1.0;
      }
      for (std::size_t i = 0; i < experts; ++i) {
        layer.sum_logit[b * experts + i] += z[i];
        layer.sum_logit_sq[b * experts + i] += z[i] * z[i];
        layer.sum_prob[b * experts + i] += std::exp(z[i]) / total;
        if (t < of.sampled) layer.logits.push_back(static_cast<float>(z[i]));
      }
      if (t < of.sampled) layer.batch.push_back(static_cast<std::int32_t>(b));
    }
  }
  return layer;
}

}  // namespace exfusion::analysis
