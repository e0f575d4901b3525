#include "observe/observation.h"

#include <fmt/format.h>

#include <cmath>
#include <optional>
#include <utility>

#include "observe/gradient_observation.h"
#include "observe/topk_columns.h"

namespace exfusion {
namespace {

double value_of(const analysis::Quantity& quantity) {
  return quantity.defined() ? quantity.value : std::nan("");
}

ObservedGroup fused_group(const FusedObservation& found, const FusedSet& set, const ObservationSize& size) {
  const std::int64_t n = set.size(), b = size.batches, c = size.classes;
  const VirtualScores& scores = found.scores;
  return {layer_path("fused", set.block),
          {numbers("a", {n}, set.a),
           numbers("share", {n}, found.geometry.share),
           numbers("offset_norm", {n}, found.offset_norm),
           numbers("weight_cosine", {n, n}, found.geometry.weight_cosine),
           numbers("offset_cosine", {n, n}, found.geometry.offset_cosine),
           number("n_eff_a", found.geometry.n_eff_a),
           number("n_eff_share", found.geometry.n_eff_share),
           headline("diversity_ratio", found.geometry.diversity_ratio),
           headline("functional_diversity", found.functions.diversity),
           headline("fusion_gap", found.functions.fusion_gap),
           numbers("tokens", {b}, scores.tokens),
           numbers("ties", {b}, scores.ties),
           numbers("load", {b, n}, scores.load),
           numbers("soft_load", {b, n}, scores.soft_load),
           numbers("unit_load", {b, n}, scores.unit_load),
           numbers("random_load", {n}, scores.random_load),
           numbers("random_soft_load", {n}, scores.random_soft_load),
           numbers("random_unit_load", {n}, scores.random_unit_load),
           numbers("score", {b, n}, scores.score),
           numbers("price_sum", {b, n}, found.prices.sum),
           numbers("price", {n}, found.prices.price),
           numbers("price_error", {n}, found.prices.price_error),
           numbers("alpha_saliency", {n}, found.prices.saliency),
           numbers("table", {n, c}, scores.table),
           numbers("class_tokens", {c}, scores.class_tokens),
           numbers("class_score", {n, c}, scores.class_score),
           headline("nmi", scores.nmi),
           number("nmi_corrected", scores.nmi_corrected),
           number("nmi_shuffle_mean", value_of(scores.shuffle.mean)),
           number("nmi_shuffle_sd", value_of(scores.shuffle.sd)),
           number("nmi_shuffle_z", value_of(scores.shuffle.z)),
           number("nmi_sample", value_of(scores.random.measured)),
           number("nmi_random_mean", value_of(scores.random.mean)),
           number("nmi_random_sd", value_of(scores.random.sd)),
           headline("nmi_random_z", value_of(scores.random.z))},
          set.block};
}

ObservedGroup interference_group(const BlockInterference& one) {
  const Interference& found = one.found;
  const auto classes = static_cast<std::int64_t>(found.class_norm.size()),
             experts = static_cast<std::int64_t>(found.kappa_of_expert.size());
  ObservedGroup group{layer_path("interference", one.block),
                      {headline("kappa", found.kappa), number("kappa_biased", found.kappa_biased),
                       numbers("class_gradient_norm", {classes}, found.class_norm)},
                      one.block};
  if (experts > 1) group.columns.push_back(numbers("kappa_of_expert", {experts}, found.kappa_of_expert));
  return group;
}

}  // namespace

ObservedColumn headline(std::string name, double value) {
  return {std::move(name), {}, {value}, true};
}
ObservedColumn number(std::string name, double value) {
  return {std::move(name), {}, {value}};
}
ObservedColumn numbers(std::string name, std::vector<std::int64_t> shape, std::vector<double> values) {
  return {std::move(name), std::move(shape), std::move(values)};
}

std::string layer_path(const std::string& group, std::int64_t block) {
  return fmt::format("{}/layer_{:03}", group, block);
}

std::vector<ObservedGroup> observe_model(Model& model, const std::vector<FusedSet>& sets,
                                         const std::vector<HeldOutBatch>& batches,
                                         const AnalysisConfig& config, const ObservationSize& size,
                                         const BlockShare& share) {
  const bool fused = config.wants("fused"), lens = config.wants("lens"), scores = config.wants("scores");
  const bool routing = lens || scores || config.wants("load") || config.wants("congestion");
  std::optional<GradientsSeen> gradients_seen;
  std::optional<TopkSeen> topk_seen;
  std::optional<LensSeen> lens_seen;
  if (fused) gradients_seen.emplace(model, sets, size.batches, size.classes, share);
  if (routing) topk_seen.emplace(model, static_cast<std::int64_t>(batches.size()), size.classes, share);
  if (lens) lens_seen.emplace(model, sets, size.classes, share);
  if (topk_seen && topk_seen->empty()) topk_seen.reset();
  if (lens_seen && lens_seen->empty()) lens_seen.reset();

  std::vector<at::Tensor> logits;
  for (const HeldOutBatch& batch : batches) {
    if (!gradients_seen && !topk_seen && !lens_seen) break;
    const ModelPass pass = pass_through(model, batch, fused || (topk_seen && scores));
    if (gradients_seen) gradients_seen->add(pass, batch);
    if (topk_seen) topk_seen->add(pass, batch);
    if (lens_seen) lens_seen->add(pass, batch);
    logits.push_back(pass.logits);
  }

  std::vector<ObservedGroup> groups;
  if (fused) {
    const GradientObservation found = gradients_seen->finish();
    for (std::size_t i = 0; i < sets.size(); ++i)
      groups.push_back(fused_group(found.fused[i], sets[i], size));
    for (const BlockInterference& one : found.interference) groups.push_back(interference_group(one));
  }
  const bool seen = !batches.empty();
  RoutingSeen found;
  if (topk_seen) found.routing = topk_seen->found();
  if (lens_seen && seen) found.lens = lens_seen->finish();
  if (lens && topk_seen && seen && share.has(kWholeModel))
    found.gates = observe_gate_sweep(model, batches, logits);
  for (ObservedGroup& group : topk_columns(model, sets, found, config, size))
    groups.push_back(std::move(group));
  return groups;
}

}  // namespace exfusion
