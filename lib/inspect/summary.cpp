#include "inspect/summary.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <vector>

namespace exfusion {
namespace {

using Json = nlohmann::ordered_json;

// A number or a pair of them; "-" where there is none.
std::string text(const Json& value) {
  if (value.is_array() && value.size() == 2) return fmt::format("[{}, {}]", text(value[0]), text(value[1]));
  if (!value.is_number()) return "-";
  const auto number = value.get<double>();
  const bool whole = number == std::floor(number) && std::abs(number) < 1e9;
  return whole ? fmt::format("{:.0f}", number) : fmt::format("{:.3g}", number);
}

std::string at(const Json& object, const char* place) {
  const Json::json_pointer pointer(place);
  return object.contains(pointer) ? text(object.at(pointer)) : "-";
}

bool number_at(const Json& object, const char* place) {
  const Json::json_pointer pointer(place);
  return object.contains(pointer) && object.at(pointer).is_number();
}

double value_at(const Json& object, const char* place) {
  return object.at(Json::json_pointer(place)).get<double>();
}

std::string head(const std::string& name, const Json& model, const std::string& routing) {
  const std::string title =
      routing.empty() ? fmt::format("# Analysis of {}, step {}\n", name, model.at("step").dump()) : routing;
  return title +
         fmt::format("\n## Held-out images\n\n{} images of the {} set in {} batches: loss {}, accuracy {}.\n",
                     at(model, "/held_out/images"), model.at("held_out").at("split").get<std::string>(),
                     at(model, "/held_out/batches"), at(model, "/held_out/loss"),
                     at(model, "/held_out/accuracy"));
}

// ---- fused sets, interference, lens

// The end of a sentence about an NMI: its z against a null, and what that shows.
std::string against_null(const Json& layer, const char* z, const char* above, const char* within) {
  if (!number_at(layer, z)) return ".\n";
  const double value = value_at(layer, z);
  return fmt::format(" (z {:.2f}): {}.\n", value, value > 3.0 ? above : within);
}

std::string fused_sentence(const Json& layer) {
  std::string line = fmt::format(
      "- layer {}: outputs of experts differ by {} of the layer's (functional diversity); fusing weights "
      "instead "
      "of outputs changes {} of it. Preferred expert and class: NMI {} against {} +- {} of random directions",
      layer.at("layer").dump(), at(layer, "/fused/functional_diversity"), at(layer, "/fused/fusion_gap"),
      at(layer, "/fused/nmi_sample"), at(layer, "/fused/nmi_random_mean"), at(layer, "/fused/nmi_random_sd"));
  return line + against_null(layer, "/fused/nmi_random_z", "more than random offsets show",
                             "no more than random offsets show");
}

std::string lens_sentence(const Json& layer) {
  return fmt::format(
      "- layer {}: cosine of one expert and the layer {} (unrelated experts {}), with the residual stream {} "
      "(unrelated {}); read through the model's end, the same class for {} of the images, KL {} nats.\n",
      layer.at("layer").dump(), at(layer, "/lens/cosine"), at(layer, "/lens/cosine_unrelated"),
      at(layer, "/lens/cosine_residual"), at(layer, "/lens/cosine_unrelated_residual"),
      at(layer, "/lens/agreement"), at(layer, "/lens/divergence"));
}

// Of the layers that have `field`, one line each under a heading; nothing where none has.
std::string section(const char* heading, const char* field, const Json& layers,
                    std::string (*sentence)(const Json&)) {
  std::string lines;
  for (const Json& layer : layers) {
    if (layer.contains(field)) lines += sentence(layer);
  }
  return lines.empty() ? "" : fmt::format("\n## {}\n\n{}", heading, lines);
}

std::string interference_sentence(const Json& layer) {
  return fmt::format("- layer {}: kappa {} (without the correction for noise {}).\n",
                     layer.at("layer").dump(), at(layer, "/interference/kappa"),
                     at(layer, "/interference/kappa_biased"));
}

// ---- knock-outs

std::string braess_sentence(const Json& of) {
  if (!number_at(of, "/braess/share")) return "";
  return fmt::format(
      " Without an expert the loss is lower for a share of {} {} of them (Braess), certainly for {}.",
      at(of, "/braess/share"), at(of, "/braess/share_ci"), at(of, "/braess/certain"));
}

std::string interaction_sentence(const Json& of) {
  if (!number_at(of, "/interaction/p")) return "";
  return fmt::format(
      " The loss of its preferred classes rises by {:+.3g} nats more than that of the others (p {})",
      value_at(of, "/interaction/contrast"), at(of, "/interaction/p"));
}

// Of all layers at once: one of many layers has a small p by chance.
std::string interaction_verdict(const Json& model) {
  if (!number_at(model, "/interaction/p")) return "";
  // The virtual router's preferences are first-order losses themselves.
  if (model.at("experts_kind") == "fused")
    return ": no verdict, since fused experts that never trained show the same.";
  return value_at(model, "/interaction/p") < 0.05 ? ": experts matter to their own classes."
                                                  : ": no evidence that experts matter to their own classes.";
}

std::string knock_out_sentence(const Json& layer) {
  std::string line =
      fmt::format("- layer {}: taking an expert out costs (nats, by expert) ", layer.at("layer").dump());
  const Json& loss = layer.at("knock_out").at("loss");
  const Json& intervals = layer.at("knock_out").at("loss_ci");
  std::vector<std::string> experts;
  for (std::size_t k = 0; k < loss.size(); ++k)
    experts.push_back(text(loss[k]) + (intervals[k].is_null() ? "" : " " + text(intervals[k])));
  line += fmt::format("{}.", fmt::join(experts, ", "));
  if (number_at(layer, "/random_step/mean"))
    line += fmt::format(" Random steps of the same size cost {} +- {}.", at(layer, "/random_step/mean"),
                        at(layer, "/random_step/sd"));
  if (layer.contains("alone")) {
    experts.clear();
    for (const Json& one : layer.at("alone").at("loss")) experts.push_back(text(one));
    line += fmt::format(" One expert alone costs {}.", fmt::join(experts, ", "));
  }
  const std::string interaction = interaction_sentence(layer);
  return line + braess_sentence(layer) + interaction + (interaction.empty() ? "\n" : ".\n");
}

std::string correlation_table(const Json& model) {
  if (!model.contains("rank_correlations") || model.at("rank_correlations").empty()) return "";
  std::string page =
      "\nRank correlation of each score, from the even batches, with the loss of taking the expert out, on "
      "the "
      "odd ones; mean over layers:\n\n| score | rho | 95 % |\n|---|---|---|\n";
  for (const auto& [name, found] : model.at("rank_correlations").items())
    page += fmt::format("| {} | {} | {} |\n", name, at(found, "/rho"), at(found, "/ci"));
  return page;
}

std::string causal_section(const Json& report) {
  const Json& model = report.at("model");
  std::string page = section("Taking experts out", "knock_out", report.at("layers"), knock_out_sentence);
  if (page.empty()) return page;
  return page + "\nAll layers:" + braess_sentence(model) + interaction_sentence(model) +
         interaction_verdict(model) + "\n" + correlation_table(model);
}

// ---- what the loss would choose, and what lies around the experts

std::string virtual_sentence(const Json& layer) {
  std::string line = fmt::format(
      "- layer {}: to first order the loss would choose the router's first expert for {} {} of the tokens "
      "(chance {}, with these loads {}; the class's most frequent expert {}), and one of its choices for "
      "{} {} (chance {}). Best expert and class: NMI {} against {} +- {} of experts with turned outputs",
      layer.at("layer").dump(), at(layer, "/virtual/agreement"), at(layer, "/virtual/agreement_ci"),
      at(layer, "/virtual/agreement_chance"), at(layer, "/virtual/agreement_independent"),
      at(layer, "/virtual/agreement_majority"), at(layer, "/virtual/among_chosen"),
      at(layer, "/virtual/among_chosen_ci"), at(layer, "/virtual/among_chosen_chance"),
      at(layer, "/virtual/nmi"), at(layer, "/virtual/nmi_random_mean"), at(layer, "/virtual/nmi_random_sd"));
  return line + against_null(layer, "/virtual/nmi_random_z", "more than sizes of outputs explain",
                             "no more than their sizes explain");
}

std::string route_sentence(const Json& layer) {
  return fmt::format(
      "- layer {}: random experts cost {} {} nats; those that the loss would choose to first order, "
      "knowing the label, cost {} {}.\n",
      layer.at("layer").dump(), at(layer, "/random_route/loss"), at(layer, "/random_route/loss_ci"),
      at(layer, "/oracle_route/loss"), at(layer, "/oracle_route/loss_ci"));
}

// The largest of a list of numbers.
std::string largest(const Json& layer, const char* place) {
  const Json::json_pointer pointer(place);
  if (!layer.contains(pointer)) return "-";
  double most = -INFINITY;
  for (const Json& one : layer.at(pointer)) most = one.is_number() ? std::max(most, one.get<double>()) : most;
  return std::isfinite(most) ? text(most) : "-";
}

std::string landscape_sentence(const Json& layer) {
  if (!number_at(layer, "/curvature/gamma_fus")) return "";  // one expert
  return fmt::format(
      "- layer {}: an expert's price rises by {} per unit of its share (gamma_fus; on halves of the images "
      "{} and {}; random directions {} +- {}). Highest barrier between two experts {} nats, between random "
      "directions {}.\n",
      layer.at("layer").dump(), at(layer, "/curvature/gamma_fus"), at(layer, "/curvature/gamma_fus_halves/0"),
      at(layer, "/curvature/gamma_fus_halves/1"), at(layer, "/curvature/random_mean"),
      at(layer, "/curvature/random_sd"), largest(layer, "/barrier/loss"),
      largest(layer, "/barrier/random_loss"));
}

std::string similarity_sentence(const Json& layer) {
  const std::string line = fmt::format(
      "- layer {}: CKA of experts' outputs {} (tokens shuffled {}, dimension over tokens {}), of what "
      "sets them apart from the layer's output {} (shuffled {}); fresh experts, too, reach 0.9",
      layer.at("layer").dump(), at(layer, "/similarity/cka_mean"), at(layer, "/similarity/cka_shuffled_mean"),
      at(layer, "/similarity/p_over_n"), at(layer, "/similarity/cka_offset_mean"),
      at(layer, "/similarity/cka_offset_shuffled_mean"));
  if (layer.at("similarity").at("aligned_cosine").is_null())
    return fmt::format("{}; weight cosine with matched units {}.\n", line,
                       layer.at("undefined").at("similarity.aligned_cosine").get<std::string>());
  return fmt::format("{}; weight cosine with matched units {} (scrambled experts {}).\n", line,
                     at(layer, "/similarity/aligned_cosine_mean"),
                     at(layer, "/similarity/aligned_random_mean"));
}

// ---- over training

std::string training_row(const Json& report) {
  const Json& model = report.at("model");
  return fmt::format("| {} | {} | {} | {} | {} |\n", model.at("step").dump(), at(model, "/held_out/loss"),
                     at(model, "/held_out/accuracy"), at(model, "/gamma_eff"), at(model, "/gamma_null"));
}

std::string phase_sentence(const std::string& name, const Json& of) {
  if (!of.at("breaks").is_number())
    return fmt::format("- {}: {} points, too few or too flat for phases.\n", name, of.at("steps").size());
  const auto breaks = of.at("breaks").get<int>();
  if (breaks == 0) return fmt::format("- {}: one straight line over log(step); no break is claimed.\n", name);
  std::vector<std::string> steps, slopes;
  for (const Json& one : of.at("break_steps")) steps.push_back(text(one));
  for (const Json& one : of.at("slopes")) slopes.push_back(text(one));
  return fmt::format("- {}: breaks at step {}; slopes per e-fold of the step {}.\n", name,
                     fmt::join(steps, " and "), fmt::join(slopes, ", "));
}

std::string logged_table(const Json& training) {
  std::string page =
      "\nCongestion at the steps that the run itself analysed, means over layers:\n\n"
      "| step | gamma_eff | 95 % | gamma_null | gamma_excess | 95 % |\n|---|---|---|---|---|---|\n";
  for (const Json& at_step : training) {
    const Json& model = at_step.at("model");
    page += fmt::format("| {} | {} | {} | {} | {} | {} |\n", at(model, "/step"), at(model, "/gamma_eff"),
                        at(model, "/gamma_ci"), at(model, "/gamma_null"), at(model, "/gamma_excess"),
                        at(model, "/gamma_excess_ci"));
  }
  return page;
}

std::string training_section(const Json& report) {
  std::string page = report.contains("training") ? logged_table(report.at("training")) : "";
  if (report.contains("checkpoints")) {
    page += "\n| step | loss | accuracy | gamma_eff | gamma_null |\n|---|---|---|---|---|\n";
    for (const Json& earlier : report.at("checkpoints")) page += training_row(earlier);
    page += training_row(report);
  }
  std::string phases;
  for (const auto& [name, of] : report.at("model").at("phases").items()) {
    if (of.at("steps").size() > 1) phases += phase_sentence(name, of);
  }
  if (!phases.empty()) page += "\nPhases, means over layers:\n\n" + phases;
  return page.empty() ? "" : "\n## Over training\n" + page;
}

}  // namespace

std::string summary_markdown(const std::string& name, const Json& report, const std::string& routing) {
  const Json& layers = report.at("layers");
  return head(name, report.at("model"), routing) + section("Fused experts", "fused", layers, fused_sentence) +
         section("Class conflict on shared weights", "interference", layers, interference_sentence) +
         section("One expert for the layer", "lens", layers, lens_sentence) +
         section("What the loss would choose", "virtual", layers, virtual_sentence) + causal_section(report) +
         section("Other choices of experts", "random_route", layers, route_sentence) +
         section("Prices and barriers between experts", "curvature", layers, landscape_sentence) +
         section("How alike experts are", "similarity", layers, similarity_sentence) +
         training_section(report);
}

}  // namespace exfusion
