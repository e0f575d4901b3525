#include "inspect/causal_report.h"

#include <algorithm>
#include <cmath>

#include "analysis/json_fields.h"
#include "inspect/json_layers.h"

namespace exfusion {
namespace {

using analysis::Fields;
using analysis::ImageSums;
using analysis::interval_json;
using Json = nlohmann::ordered_json;

// Lists over experts: mean changes with intervals and by class; null for an expert that cannot be left out.
void put_changes(const analysis::HeldOutImages& held_out, const std::vector<ImageSums>& changes,
                 const std::string& name, Fields& fields) {
  Json lists = {{"loss", Json::array()},          {"loss_ci", Json::array()},
                {"accuracy", Json::array()},      {"accuracy_ci", Json::array()},
                {"loss_by_class", Json::array()}, {"accuracy_by_class", Json::array()}};
  for (const ImageSums& one : changes) {
    if (one.loss.empty()) {
      for (Json& list : lists) list.push_back(nullptr);
      continue;
    }
    const analysis::MeanChange mean = mean_change(held_out, one);
    lists["loss"].push_back(mean.loss);
    lists["loss_ci"].push_back(interval_json(mean.loss_ci));
    lists["accuracy"].push_back(mean.accuracy);
    lists["accuracy_ci"].push_back(interval_json(mean.accuracy_ci));
    lists["loss_by_class"].push_back(numbers_json(mean.loss_by_class));
    lists["accuracy_by_class"].push_back(numbers_json(mean.accuracy_by_class));
  }
  fields.put(name, std::move(lists));
}

void put_braess(const analysis::HeldOutImages& held_out, const std::vector<ImageSums>& left_out,
                Fields& fields) {
  if (std::ranges::all_of(left_out, [](const ImageSums& one) { return one.loss.empty(); })) {
    fields.put("braess", nullptr, "no expert can be left out");
    return;
  }
  const analysis::BraessShare found = braess_share(held_out, left_out);
  fields.put("braess.share", found.share);
  fields.put("braess.share_ci", found.share_ci);
  fields.put("braess.certain", found.certain);
}

void put_interaction(const analysis::InteractionContrast& found, Fields& fields) {
  fields.put("interaction.contrast", found.contrast);
  fields.put("interaction.p", found.p);
}

void put_correlations(const std::vector<std::string>& names,
                      const std::vector<analysis::RankCorrelation>& found, Fields& fields) {
  fields.put("rank_correlations", Json::object());
  for (std::size_t i = 0; i < names.size(); ++i) {
    fields.put("rank_correlations." + names[i],
               {{"rho", found[i].rho.defined() ? Json(found[i].rho.value) : Json(nullptr)},
                {"ci", interval_json(found[i].ci)}});
    fields.note("rank_correlations." + names[i] + ".rho", found[i].rho.reason);
    fields.note("rank_correlations." + names[i] + ".ci", found[i].ci.reason);
  }
}

// Mean and standard deviation of the loss that random steps of the same size cost, and how far leaving out
// lies above: the null of leaving out.
void put_random(const analysis::HeldOutImages& held_out, const FfnKnockOut& ffn, Fields& fields) {
  std::vector<double> losses;
  const std::vector<double> all(held_out.batches, 1.0);
  for (const ImageSums& one : ffn.random) losses.push_back(mean_loss(held_out, one, all));
  double mean = 0.0, squares = 0.0, left_out = 0.0, experts = 0.0;
  for (const double one : losses) mean += one / static_cast<double>(losses.size());
  for (const double one : losses) squares += (one - mean) * (one - mean);
  for (const ImageSums& one : ffn.left_out) {
    if (one.loss.empty()) continue;
    left_out += mean_loss(held_out, one, all);
    experts += 1.0;
  }
  const char* const why = losses.empty() ? "no expert can be left out" : "";
  const double sd = std::sqrt(squares / std::max(1.0, static_cast<double>(losses.size()) - 1.0));
  fields.put("random_step.loss", losses.empty() ? Json(nullptr) : numbers_json(losses), why);
  fields.put("random_step.mean", analysis::quantity(losses.empty() ? std::nan("") : mean, why));
  fields.put("random_step.sd", analysis::quantity(losses.empty() ? std::nan("") : sd, why));
  fields.put("random_step.z", analysis::quantity((left_out / experts - mean) / sd,
                                                 losses.empty() ? why : "random steps change nothing"));
}

}  // namespace

void put_knock_outs(const KnockOuts& found, const std::vector<ExpertScores>& scores, Json& layers,
                    Json& model) {
  const analysis::HeldOutImages& held_out = found.held_out;
  std::vector<ImageSums> everyone;
  std::vector<analysis::InteractionContrast> contrasts;
  std::vector<std::vector<analysis::RankCorrelation>> correlations;  // [scores][FFNs]
  for (std::size_t i = 0; i < found.ffns.size(); ++i) {
    const FfnKnockOut& ffn = found.ffns[i];
    Fields fields;
    put_changes(held_out, ffn.left_out, "knock_out", fields);
    for (std::size_t k = 0; k < ffn.undefined.size(); ++k)
      fields.note("knock_out.loss." + std::to_string(k), ffn.undefined[k]);
    if (!ffn.alone.empty()) {
      put_changes(held_out, ffn.alone, "alone", fields);
      put_changes(held_out, ffn.alone_scaled, "alone_scaled", fields);
      put_random(held_out, ffn, fields);
    }
    put_braess(held_out, ffn.left_out, fields);
    contrasts.push_back(interaction_contrast(held_out, ffn.left_out, scores[i].preference,
                                             static_cast<std::uint32_t>(ffn.block)));
    put_interaction(contrasts.back(), fields);
    const auto ranked = rank_correlations(held_out, ffn.left_out, scores[i].of_batches);
    put_correlations(scores[i].names, ranked, fields);
    correlations.resize(ranked.size());
    for (std::size_t s = 0; s < ranked.size(); ++s) correlations[s].push_back(ranked[s]);
    everyone.insert(everyone.end(), ffn.left_out.begin(), ffn.left_out.end());
    add_fields(layer_of(layers, ffn.block), fields.finished());
  }
  Fields fields;
  put_braess(held_out, everyone, fields);
  put_interaction(mean_contrast(contrasts), fields);
  std::vector<analysis::RankCorrelation> means;
  for (const auto& score : correlations) means.push_back(mean_correlation(score, held_out.batches));
  put_correlations(scores.empty() ? std::vector<std::string>() : scores.front().names, means, fields);
  if (!found.alone_everywhere.empty()) put_changes(held_out, found.alone_everywhere, "alone", fields);
  add_fields(model, fields.finished());
}

}  // namespace exfusion
