#include "analysis/analysis.h"

#include <algorithm>

namespace exfusion::analysis {
namespace {

LayerAnalysis analyse_layer(const Trace& trace, const TraceLayer& layer) {
  LayerAnalysis found;
  found.layer = layer.layer;
  found.congestion = analyse_congestion(trace, layer);
  found.held_out = held_out_l1(layer, trace.experts);
  found.multi_type = multi_type(layer, trace.experts);
  found.held_out.multi_type = found.multi_type.l1;
  const std::vector<double> counts = column_sums(layer.count, trace.experts);
  found.load = imbalance(counts);
  found.dead = dead_experts(counts);
  found.specialisation = specialisation(trace, layer);
  found.scores = expert_scores(accumulate(layer, trace.experts));
  double tokens = 0.0;
  for (const double one : layer.tokens) tokens += one;
  found.cv_floor =
      tokens > 0.0
          ? Quantity{cv_floor(static_cast<double>(trace.experts), static_cast<double>(trace.top_k), tokens),
                     ""}
          : undefined("tokens are not in this trace");
  return found;
}

Quantity mean_over_layers(const std::vector<LayerAnalysis>& layers, Quantity LayerCongestion::*of) {
  double sum = 0.0, count = 0.0;
  for (const LayerAnalysis& layer : layers) {
    const Quantity& one = layer.congestion.*of;
    if (!one.defined()) continue;
    sum += one.value;
    count += 1.0;
  }
  return count > 0.0 ? Quantity{sum / count, ""} : undefined("undefined in every layer");
}

// Of the mean over the layers in which `of` is defined, each with its resamples.
Interval joint_interval(const std::vector<LayerAnalysis>& layers, Quantity LayerCongestion::*of,
                        std::vector<double> LayerCongestion::*resamples) {
  std::vector<double> means(kResamples, 0.0);
  double count = 0.0;
  std::size_t batches = SIZE_MAX;  // of the layer with the fewest
  for (const LayerAnalysis& layer : layers) {
    if (!(layer.congestion.*of).defined()) continue;
    batches = std::min(batches, layer.congestion.batches);
    const std::vector<double>& drawn = layer.congestion.*resamples;
    if (drawn.size() != kResamples) return {0.0, 0.0, "a layer has no interval"};
    for (std::uint32_t r = 0; r < kResamples; ++r) means[r] += drawn[r];
    count += 1.0;
  }
  if (count == 0.0) return {0.0, 0.0, "undefined in every layer"};
  for (double& mean : means) mean /= count;
  return percentile_interval(std::move(means), expanded_tail(batches));
}

}  // namespace

TraceAnalysis analyse_trace(const Trace& trace) {
  TraceAnalysis found;
  for (const TraceLayer& layer : trace.layers) found.layers.push_back(analyse_layer(trace, layer));
  ModelAnalysis& model = found.model;
  const auto mean = [&](Quantity LayerCongestion::*of) { return mean_over_layers(found.layers, of); };
  model.gamma_eff = mean(&LayerCongestion::gamma_eff);
  model.gamma_iv = mean(&LayerCongestion::gamma_iv);
  model.temperature = mean(&LayerCongestion::temperature);
  model.gamma_null = mean(&LayerCongestion::gamma_null);
  model.gamma_excess = mean(&LayerCongestion::gamma_excess);
  model.gamma_probe = mean(&LayerCongestion::gamma_probe);
  model.gamma_ci =
      joint_interval(found.layers, &LayerCongestion::gamma_eff, &LayerCongestion::resampled_gamma);
  model.gamma_excess_ci =
      joint_interval(found.layers, &LayerCongestion::gamma_excess, &LayerCongestion::resampled_excess);
  return found;
}

}  // namespace exfusion::analysis
