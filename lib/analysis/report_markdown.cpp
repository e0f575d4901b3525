#include <fmt/format.h>

#include "analysis/report.h"

namespace exfusion::analysis {
namespace {

std::string text(const Quantity& one) {
  return one.defined() ? fmt::format("{:.3g}", one.value) : "-";
}

std::string text(const Interval& one) {
  return one.defined() ? fmt::format("[{:.3g}, {:.3g}]", one.low, one.high) : "[no interval]";
}

// What the excess over the null shows.
std::string verdict(const Quantity& excess, const Interval& interval) {
  if (!excess.defined()) return "nothing can be said: " + excess.reason;
  if (!interval.defined()) return "no verdict without an interval: " + interval.reason;
  if (interval.low > 0.0)
    return fmt::format("congestion: the excess of {:.3g} {} excludes 0", excess.value, text(interval));
  if (interval.high < 0.0)
    return fmt::format("the load is more concentrated than logit spread explains: {:.3g} {}", excess.value,
                       text(interval));
  return "no evidence of balancing beyond logit spread";
}

std::string congestion_sentence(const LayerAnalysis& layer) {
  const LayerCongestion& of = layer.congestion;
  if (!of.gamma_eff.defined())
    return fmt::format("- layer {}: gamma_eff is undefined: {}.\n", layer.layer, of.gamma_eff.reason);
  std::string line =
      fmt::format("- layer {}: gamma_eff {} {}", layer.layer, text(of.gamma_eff), text(of.gamma_ci));
  if (of.gamma_estimator != "E3") line += " (by " + of.gamma_estimator + ")";
  if (of.gamma_null.defined())
    line += fmt::format("; a router without congestion would show {}", text(of.gamma_null));
  line += ": " + verdict(of.gamma_excess, of.gamma_excess_ci) + ".";
  if (of.gamma_probe.defined()) line += fmt::format(" Bias probe: {}.", text(of.gamma_probe));
  if (of.sigma_uncentred) line += " sigma is uncentred: the null may be too high.";
  return line + "\n";
}

std::string load_row(const LayerAnalysis& layer) {
  const Imbalance& of = layer.load;
  return fmt::format("| {} | {:.2f} | {:.2f} | {:.3f} | {} | {:.3f} | {:.1f} | {:.3f} | {} |\n", layer.layer,
                     of.max_mean, of.min_mean, of.cv, text(layer.cv_floor), of.gini, of.exp_h, of.m_sum_sq,
                     layer.dead);
}

std::string held_out_row(const LayerAnalysis& layer) {
  const HeldOutL1& of = layer.held_out;
  return fmt::format("| {} | {} | {} | {} | {} | {} | {} | {} |\n", layer.layer, text(of.mfg),
                     text(of.softmax_t), text(of.softmax_1), text(of.uniform), text(of.mean_prob),
                     text(of.multi_type), text(of.half_vs_half));
}

}  // namespace

std::string report_markdown(const Trace& trace, const TraceAnalysis& analysis, const std::string& source) {
  const ModelAnalysis& model = analysis.model;
  std::string page =
      fmt::format("# Analysis of {}\n\n{} layers, {} experts", source, trace.layers.size(), trace.experts);
  page += trace.top_k > 0 ? fmt::format(", {} per token.\n\n", trace.top_k) : ".\n\n";
  page +=
      "gamma, its estimators and nulls are reconstructions from an abstract (arXiv 2604.04230) and this "
      "project's own; they are not that paper's numbers. Intervals: 95 %, batches resampled 1,000 times.\n\n"
      "## Congestion\n\n";
  page += fmt::format("Mean over layers: gamma_eff {} {}, null {}: {}.\n\n", text(model.gamma_eff),
                      text(model.gamma_ci), text(model.gamma_null),
                      verdict(model.gamma_excess, model.gamma_excess_ci));
  for (const LayerAnalysis& layer : analysis.layers) page += congestion_sentence(layer);
  page +=
      "\n## Load\n\n| layer | max/mean | min/mean | CV | CV of chance | Gini | exp H | M sum m^2 | dead |\n"
      "|---|---|---|---|---|---|---|---|---|\n";
  for (const LayerAnalysis& layer : analysis.layers) page += load_row(layer);
  page +=
      "\n## Held-out L1 of the load\n\nFitted on even batches, measured on odd ones. Half against half holds "
      "the noise of both and is no lower bound.\n\n"
      "| layer | game | softmax(q/T) | softmax(q) | uniform | mean probability | multi-type | half against "
      "half |\n|---|---|---|---|---|---|---|---|\n";
  for (const LayerAnalysis& layer : analysis.layers) page += held_out_row(layer);
  return page;
}

}  // namespace exfusion::analysis
