#include "analysis/json_fields.h"
#include "analysis/report.h"

namespace exfusion::analysis {
namespace {

void put_congestion(const LayerCongestion& of, Fields& fields) {
  fields.put("gamma_eff", of.gamma_eff);
  fields.put("gamma_ci", of.gamma_ci);
  fields.put("gamma_estimator", of.gamma_eff.defined() ? Json(of.gamma_estimator) : Json(nullptr),
             of.gamma_eff.reason);
  fields.put("gamma_iv", of.gamma_iv);
  fields.put("temperature", of.temperature);
  fields.put("gamma_null", of.gamma_null);
  fields.put("gamma_excess", of.gamma_excess);
  fields.put("gamma_excess_ci", of.gamma_excess_ci);
  fields.put("gamma_probe", of.gamma_probe);
  for (std::size_t i = 0; i < 4; ++i) {
    fields.put("gamma_by_quality.q" + std::to_string(i + 1), of.gamma_by_quality[i]);
    fields.put("gamma_null_by_quality.q" + std::to_string(i + 1), of.null_by_quality[i]);
  }
  fields.put("gamma_null_closed_form", of.gamma_null_closed_form);
  fields.put("sigma", of.sigma);
  fields.put("sigma_uncentred", of.sigma_uncentred);
  fields.put("sigma_bias", of.sigma_bias);
  fields.put("quality_range", of.quality_range);
  fields.put("softmax_max_mean", of.softmax_max_mean);
  fields.put("gamma_explicit.aux_share_sums_to_1", of.explicit_part.aux_share_sums_to_1);
  fields.put("gamma_explicit.aux_share_sums_to_k", of.explicit_part.aux_share_sums_to_k);
  fields.put("gamma_explicit.selection_bias", of.explicit_part.selection_bias);
  fields.put("epsilon.l1", of.epsilon_l1);
  fields.put("epsilon.nash", of.epsilon_nash);
}

void put_held_out(const HeldOutL1& of, Fields& fields) {
  fields.put("heldout_l1.mfg", of.mfg);
  fields.put("heldout_l1.softmax_t", of.softmax_t);
  fields.put("heldout_l1.softmax_1", of.softmax_1);
  fields.put("heldout_l1.uniform", of.uniform);
  fields.put("heldout_l1.mean_prob", of.mean_prob);
  fields.put("heldout_l1.multi_type", of.multi_type);
  fields.put("heldout_l1.half_vs_half", of.half_vs_half);
}

void put_multi_type(const MultiTypeTable& of, Fields& fields) {
  Json rows = Json::array();
  for (const MultiType& row : of.rows)
    rows.push_back({{"types", row.types},
                    {"gamma", row.gamma},
                    {"l1", row.l1},
                    {"l1_single", row.l1_single},
                    {"l1_random_partition", row.l1_random},
                    {"improvement", row.improvement()},
                    {"improvement_random_partition", row.improvement_random()}});
  fields.put("multi_type", of.rows.empty() ? Json(nullptr) : rows, of.rows.empty() ? of.l1.reason : "");
}

void put_load(const LayerAnalysis& of, Fields& fields) {
  fields.put("imbalance.max_mean", of.load.max_mean);
  fields.put("imbalance.min_mean", of.load.min_mean);
  fields.put("imbalance.cv", of.load.cv);
  fields.put("imbalance.gini", of.load.gini);
  fields.put("imbalance.exp_h", of.load.exp_h);
  fields.put("imbalance.m_sum_sq", of.load.m_sum_sq);
  fields.put("cv_floor", of.cv_floor);
  fields.put("dead_experts", of.dead);
}

void put_comparison(const std::string& name, const NullComparison& of, Fields& fields) {
  fields.put(name + ".nmi", of.measured);
  fields.put(name + ".null_mean", of.mean);
  fields.put(name + ".null_sd", of.sd);
  fields.put(name + ".z", of.z);
}

void put_specialisation(const Specialisation& of, Fields& fields) {
  Json domains = Json::array();
  for (const DomainProfile& one : of.domains)
    domains.push_back({{"domain", one.name},
                       {"n50", one.n50},
                       {"exp_h", one.exp_h},
                       {"max_specialisation", one.max_specialisation},
                       {"specialisation", one.specialisation}});
  fields.put("domains", of.domains.empty() ? Json(nullptr) : domains,
             of.domains.empty() ? of.nmi.reason : "");
  fields.put("nmi.sqrt", of.nmi);
  fields.put("nmi.min", of.nmi_min);
  fields.put("nmi.sqrt_corrected", of.nmi_corrected);
  put_comparison("label_shuffle", of.shuffle, fields);
  put_comparison("random_router", of.router, fields);
}

void put_scores(const std::vector<Score>& scores, Fields& fields) {
  for (const Score& one : scores) {
    if (one.b < 0) {
      fields.put("scores." + one.name, one.reason.empty() ? Json{{"values", one.values}} : Json(nullptr),
                 one.reason);
      continue;
    }
    fields.put("scores." + one.name, {{"b", one.b},
                                      {"alpha", one.alpha},
                                      {"beta", one.beta},
                                      {"values", one.reason.empty() ? Json(one.values) : Json(nullptr)}});
    fields.note("scores." + one.name + ".values", one.reason);
  }
}

Json layer_json(const LayerAnalysis& layer) {
  Fields fields;
  fields.put("layer", layer.layer);
  put_congestion(layer.congestion, fields);
  put_held_out(layer.held_out, fields);
  put_multi_type(layer.multi_type, fields);
  put_load(layer, fields);
  put_specialisation(layer.specialisation, fields);
  put_scores(layer.scores, fields);
  return fields.finished();
}

Json model_json(const Trace& trace, const ModelAnalysis& model) {
  Fields fields;
  fields.put("experts", trace.experts);
  fields.put("top_k", trace.top_k > 0 ? Json(trace.top_k) : Json(nullptr),
             trace.top_k > 0 ? "" : "not in this trace");
  fields.put("layers", trace.layers.size());
  fields.put("gamma_eff", model.gamma_eff);
  fields.put("gamma_ci", model.gamma_ci);
  fields.put("gamma_iv", model.gamma_iv);
  fields.put("temperature", model.temperature);
  fields.put("gamma_null", model.gamma_null);
  fields.put("gamma_excess", model.gamma_excess);
  fields.put("gamma_excess_ci", model.gamma_excess_ci);
  fields.put("gamma_probe", model.gamma_probe);
  return fields.finished();
}

}  // namespace

nlohmann::ordered_json report_json(const Trace& trace, const TraceAnalysis& analysis) {
  Json layers = Json::array();
  for (const LayerAnalysis& layer : analysis.layers) layers.push_back(layer_json(layer));
  return {{"layers", std::move(layers)}, {"model", model_json(trace, analysis.model)}};
}

}  // namespace exfusion::analysis
