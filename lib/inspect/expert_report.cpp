#include "inspect/expert_report.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "analysis/json_fields.h"
#include "inspect/json_layers.h"
#include "observe/expert_similarity.h"
#include "observe/fused_landscape.h"
#include "observe/topk_routes.h"

namespace exfusion {
namespace {

using analysis::Fields;
using analysis::quantity;
using Json = nlohmann::ordered_json;

// [rows, columns] as nested lists; null where not finite.
Json table_json(const std::vector<double>& values, std::size_t columns) {
  Json rows = Json::array();
  for (auto row = values.begin(); row != values.end(); row += static_cast<std::ptrdiff_t>(columns))
    rows.push_back(numbers_json({row, row + static_cast<std::ptrdiff_t>(columns)}));
  return rows;
}

double sum_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

// Part of `all` tokens, both [B], with an interval from batches resampled.
void put_share(const std::string& path, const std::vector<double>& some, const std::vector<double>& all,
               Fields& fields) {
  const auto share = [&](const std::vector<double>& times) {
    return std::inner_product(some.begin(), some.end(), times.begin(), 0.0) /
           std::inner_product(all.begin(), all.end(), times.begin(), 0.0);
  };
  const char* const none = "no token prefers one expert";
  fields.put(path, quantity(share(std::vector<double>(all.size(), 1.0)), none));
  if (all.size() < analysis::kFewestBatches) {
    fields.put(path + "_ci", nullptr, "fewer than 4 batches");
    return;
  }
  std::vector<double> drawn;
  for (std::uint32_t r = 0; r < analysis::kResamples; ++r)
    drawn.push_back(share(analysis::resample_batches(all.size(), r).all));
  fields.put(path + "_ci",
             analysis::percentile_interval(std::move(drawn), analysis::expanded_tail(all.size())));
}

// Sums [B, N] as parts of the tokens, [N].
Json shares_json(const std::vector<double>& sums, std::size_t experts, double tokens) {
  std::vector<double> shares(experts, 0.0);
  for (std::size_t i = 0; i < sums.size(); ++i) shares[i % experts] += sums[i] / tokens;
  return numbers_json(shares);
}

void put_null(const std::string& name, const analysis::NullComparison& with, Fields& fields) {
  fields.put(name + "_mean", with.mean);
  fields.put(name + "_sd", with.sd);
  fields.put(name + "_z", with.z);
}

Json virtual_json(const TopkVirtualScores& of) {
  const VirtualScores& scores = of.scores;
  const auto experts = static_cast<std::size_t>(of.experts);
  const double tokens = sum_of(scores.tokens), m = static_cast<double>(of.experts);
  Fields fields;
  fields.put("virtual.tokens", tokens);
  fields.put("virtual.ties", sum_of(scores.ties));
  fields.put("virtual.load", shares_json(scores.load, experts, tokens));
  fields.put("virtual.random_load", numbers_json(scores.random_load));
  fields.put("virtual.soft_load", shares_json(scores.soft_load, experts, tokens));
  fields.put("virtual.random_soft_load", numbers_json(scores.random_soft_load));
  fields.put("virtual.unit_load", shares_json(scores.unit_load, experts, tokens));
  fields.put("virtual.random_unit_load", numbers_json(scores.random_unit_load));
  fields.put("virtual.table", table_json(scores.table, scores.class_tokens.size()));
  fields.put("virtual.class_tokens", numbers_json(scores.class_tokens));
  fields.put("virtual.class_score", table_json(scores.class_score, scores.class_tokens.size()));
  const char* const one = "no expert, or one alone, is preferred";
  fields.put("virtual.nmi", quantity(scores.nmi, one));
  fields.put("virtual.nmi_corrected", quantity(scores.nmi_corrected, one));
  put_null("virtual.nmi_shuffle", scores.shuffle, fields);
  put_null("virtual.nmi_random", scores.random, fields);
  const RouterAgreement& agreement = of.agreement;
  put_share("virtual.agreement", agreement.first, agreement.preferring, fields);
  fields.put("virtual.agreement_chance", 1.0 / m);
  fields.put("virtual.agreement_independent", quantity(agreement.independent, "no token prefers one expert"));
  put_share("virtual.agreement_majority", agreement.majority, agreement.preferring, fields);
  put_share("virtual.among_chosen", agreement.chosen, agreement.preferring, fields);
  fields.put("virtual.among_chosen_chance", static_cast<double>(of.top_k) / m);
  return fields.finished();
}

void put_change(const std::string& name, const analysis::HeldOutImages& held_out,
                const analysis::ImageSums& change, Fields& fields) {
  const analysis::MeanChange mean = mean_change(held_out, change);
  fields.put(name + ".loss", mean.loss);
  fields.put(name + ".loss_ci", mean.loss_ci);
  fields.put(name + ".accuracy", mean.accuracy);
  fields.put(name + ".accuracy_ci", mean.accuracy_ci);
  fields.put(name + ".loss_by_class", numbers_json(mean.loss_by_class));
}

Json curvature_json(const PriceCurvature& of) {
  const auto n = static_cast<std::size_t>(std::lround(std::sqrt(static_cast<double>(of.gamma.size()))));
  const auto count = static_cast<double>(of.random.size());
  double mean = sum_of(of.random) / count, squares = 0.0;
  for (const double one : of.random) squares += (one - mean) * (one - mean);
  const char* const single = n < 2 ? "one expert" : "undefined on these images";
  Fields fields;
  fields.put("curvature.gamma_fus", quantity(of.slope, single));
  fields.put("curvature.gamma_fus_halves", numbers_json(of.of_halves));
  fields.put("curvature.random", numbers_json(of.random));
  fields.put("curvature.random_mean", quantity(mean, single));
  fields.put("curvature.random_sd", quantity(std::sqrt(squares / (count - 1.0)), single));
  fields.put("curvature.asymmetry", quantity(of.asymmetry, "all slopes are 0"));
  fields.put("curvature.gamma", table_json(of.gamma, n));
  return fields.finished();
}

Json pairs_json(const std::vector<std::pair<std::int64_t, std::int64_t>>& pairs) {
  Json list = Json::array();
  for (const auto& [i, j] : pairs) list.push_back({i, j});
  return list;
}

Json barrier_json(const LossBarriers& of) {
  Fields fields;
  fields.put("barrier.images", of.images);
  fields.put("barrier.pairs", pairs_json(of.pairs));
  fields.put("barrier.loss", numbers_json(of.barrier));
  fields.put("barrier.random_loss", numbers_json(of.random));
  return fields.finished();
}

void put_mean(const std::string& name, const std::vector<double>& values, const std::string& why,
              Fields& fields) {
  fields.put(name, values.empty() ? Json(nullptr) : numbers_json(values), values.empty() ? why : "");
  fields.put(name + "_mean", quantity(sum_of(values) / static_cast<double>(values.size()), why));
}

Json similarity_json(const ExpertSimilarity& of) {
  Fields fields;
  fields.put("similarity.pairs", pairs_json(of.pairs));
  fields.put("similarity.tokens", of.tokens);
  fields.put("similarity.p_over_n", static_cast<double>(of.dim) / static_cast<double>(of.tokens));
  const char* const rounding = "outputs of some experts do not vary beyond rounding";
  put_mean("similarity.cka", of.cka, rounding, fields);
  put_mean("similarity.cka_shuffled", of.cka_shuffled, rounding, fields);
  put_mean("similarity.cka_offset", of.cka_offset, rounding, fields);
  put_mean("similarity.cka_offset_shuffled", of.cka_offset_shuffled, rounding, fields);
  const std::string unaligned = of.not_aligned.empty() ? "an expert without weights" : of.not_aligned;
  const auto put_aligned = [&](const std::string& name, const std::vector<AlignedCosine>& aligned) {
    std::vector<double> cosines, in_place;
    for (const AlignedCosine& one : aligned) {
      cosines.push_back(one.cosine);
      in_place.push_back(one.in_place);
    }
    put_mean(name, cosines, unaligned, fields);
    put_mean(name + "_in_place", in_place, unaligned, fields);
  };
  put_aligned("similarity.aligned_cosine", of.aligned);
  put_aligned("similarity.aligned_random", of.aligned_random);
  return fields.finished();
}

}  // namespace

void put_virtual_scores(const std::vector<TopkVirtualScores>& found, Json& layers) {
  for (const TopkVirtualScores& one : found) add_fields(layer_of(layers, one.block), virtual_json(one));
}

void put_expert_measures(Model& model, const std::vector<FusedSet>& sets,
                         const std::vector<HeldOutBatch>& batches, const analysis::HeldOutImages& held_out,
                         std::int64_t classes, Json& layers, const std::function<void(double)>& progress) {
  const auto part = [&progress](double number) {
    return [&progress, number](double done) { progress((number + done) / 4.0); };
  };
  for (const RouteChanges& one : change_routes(model, batches, held_out, part(0.0))) {
    Fields fields;
    put_change("random_route", held_out, one.random, fields);
    put_change("oracle_route", held_out, one.oracle, fields);
    add_fields(layer_of(layers, one.block), fields.finished());
  }
  for (const PriceCurvature& one : price_curvatures(model, sets, batches, part(1.0)))
    add_fields(layer_of(layers, one.block), curvature_json(one));
  for (const LossBarriers& one : loss_barriers(model, sets, batches, classes, part(2.0)))
    add_fields(layer_of(layers, one.block), barrier_json(one));
  for (const ExpertSimilarity& one : expert_similarities(model, sets, batches, part(3.0)))
    add_fields(layer_of(layers, one.block), similarity_json(one));
}

}  // namespace exfusion
