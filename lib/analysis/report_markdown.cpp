#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "analysis/report.h"

namespace exfusion::analysis {
namespace {

constexpr std::size_t kFewForBootstrap = 20;  // below, a bootstrap over batches is too sure of itself

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

std::string multi_type_row(const LayerAnalysis& layer) {
  std::string line = fmt::format("| {}", layer.layer);
  for (std::size_t i = 0; i < std::size(kTypeCounts); ++i) {
    line += i < layer.multi_type.rows.size()
                ? fmt::format(" | {:.1f} % ({:.1f} %)", 100.0 * layer.multi_type.rows[i].improvement(),
                              100.0 * layer.multi_type.rows[i].improvement_random())
                : " | -";
  }
  return line + " |\n";
}

// A measured NMI beside one of its nulls, and what that shows: specialists are claimed above z = 3.
std::string comparison(const NullComparison& of, const std::string& null, const std::string& within) {
  if (!of.measured.defined()) return fmt::format("against {}: not possible, {}", null, of.measured.reason);
  const std::string line =
      fmt::format("{} against {} of {} +- {}", text(of.measured), text(of.mean), null, text(of.sd));
  if (!of.z.defined()) return line + ": " + of.z.reason;
  return fmt::format("{} (z {:.2f}): {}", line, of.z.value, of.z.value > 3.0 ? "more than that" : within);
}

std::string specialisation_sentences(const LayerAnalysis& layer) {
  const Specialisation& of = layer.specialisation;
  if (!of.nmi.defined()) return fmt::format("- layer {}: {}.\n", layer.layer, of.nmi.reason);
  std::string line = fmt::format("- layer {}: NMI of domain and expert {}; on the sample {}.", layer.layer,
                                 comparison(of.shuffle, "shuffled domains", "no more than chance"),
                                 comparison(of.router, "random routers on the same hidden states",
                                            "no more than a router that learned nothing"));
  for (const DomainProfile& domain : of.domains)
    line += fmt::format(" Domain {}: half of the load on {} experts, exp H {:.1f}, largest {:.3g}.",
                        domain.name, domain.n50, domain.exp_h, domain.max_specialisation);
  return line + "\n";
}

constexpr const char* kShownScores[] = {"frequency", "seer", "ean",       "reap",
                                        "man",       "msan", "gate_norm", "gate_norm_sq"};

// The three experts that each score would prune first.
std::string score_row(const LayerAnalysis& layer) {
  std::string line = fmt::format("| {}", layer.layer);
  for (const char* name : kShownScores) {
    for (const Score& score : layer.scores) {
      if (score.name != name) continue;
      std::vector<std::size_t> first = prune_order(score.values);
      if (first.size() > 3) first.resize(3);
      line += first.empty() ? " | -" : fmt::format(" | {}", fmt::join(first, ", "));
    }
  }
  return line + " |\n";
}

// What is undefined and why: reason, numbers, layers.
std::string undefined_list(const nlohmann::ordered_json& report) {
  std::map<std::string, std::map<std::string, std::string>> by_reason;  // reason, layers, fields
  std::map<std::pair<std::string, std::string>, std::string> layers;    // (reason, field)
  for (const auto& layer : report.at("layers")) {
    for (const auto& [field, reason] : layer.at("undefined").items()) {
      std::string& of = layers[{reason.get<std::string>(), field}];
      of += (of.empty() ? "" : ", ") + layer.at("layer").dump();
    }
  }
  for (const auto& [key, of] : layers) {
    std::string& fields = by_reason[key.first][of];
    fields += (fields.empty() ? "`" : ", `") + key.second + "`";
  }
  std::string list;
  for (const auto& [reason, groups] : by_reason) {
    for (const auto& [of, fields] : groups) list += fmt::format("- {} (layer {}): {}\n", reason, of, fields);
  }
  return list.empty() ? "Nothing.\n" : list;
}

std::string specialisation_section(const TraceAnalysis& analysis) {
  std::string page =
      "\n## Specialisation\n\nAny router on separable domains shows mutual information; specialists are "
      "claimed above z = 3 only.\n\n";
  for (const LayerAnalysis& layer : analysis.layers) page += specialisation_sentences(layer);
  page += fmt::format("\n## Scores: the three experts that each would prune first\n\n| layer | {} |\n|---",
                      fmt::join(kShownScores, " | "));
  for ([[maybe_unused]] const char* name : kShownScores) page += "|---";
  page += "|\n";
  for (const LayerAnalysis& layer : analysis.layers) page += score_row(layer);
  return page;
}

}  // namespace

std::string report_markdown(const Trace& trace, const TraceAnalysis& analysis, const std::string& source) {
  const ModelAnalysis& model = analysis.model;
  std::string page =
      fmt::format("# Analysis of {}\n\n{} layers, {} experts", source, trace.layers.size(), trace.experts);
  page += trace.top_k > 0 ? fmt::format(", {} per token.\n\n", trace.top_k) : ".\n\n";
  page +=
      "gamma, its estimators and nulls are reconstructions from an abstract (arXiv 2604.04230) and this "
      "project's own; they are not that paper's numbers. Intervals: 95 %, batches resampled 1,000 times";
  const std::size_t batches = trace.layers.front().batches();
  page += batches < kFewForBootstrap
              ? fmt::format(
                    "; with {} batches they are too narrow, and what they exclude is not excluded: "
                    "take {} or more.\n\n## Congestion\n\n",
                    batches, kFewForBootstrap)
              : std::string(".\n\n## Congestion\n\n");
  const auto layers_with = [&](Quantity LayerCongestion::*field) {
    return std::ranges::count_if(analysis.layers,
                                 [&](const LayerAnalysis& one) { return (one.congestion.*field).defined(); });
  };
  page +=
      "The null gives the logits of all experts one spread. Where spreads differ, as in fresh routers they "
      "do, the "
      "excess leaves 0 in either direction without any balancing: compare a layer with itself before "
      "training.\n\n";
  page +=
      fmt::format("Mean over layers: gamma_eff {} {} ({} of {} layers), null {} ({}): {}.\n\n",
                  text(model.gamma_eff), text(model.gamma_ci), layers_with(&LayerCongestion::gamma_eff),
                  analysis.layers.size(), text(model.gamma_null), layers_with(&LayerCongestion::gamma_null),
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
  page +=
      "\nLess error by J types of tokens than by one, and by a random partition of the same sizes (which "
      "should be about 0):\n\n| layer | J = 4 | 8 | 16 | 32 |\n|---|---|---|---|---|\n";
  for (const LayerAnalysis& layer : analysis.layers) page += multi_type_row(layer);
  page += specialisation_section(analysis);
  page += "\n## Undefined\n\n" + undefined_list(report_json(trace, analysis));
  return page;
}

}  // namespace exfusion::analysis
