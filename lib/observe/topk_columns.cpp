#include "observe/topk_columns.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <set>

#include "analysis/imbalance.h"
#include "analysis/layer_congestion.h"
#include "observe/topk_dynamics.h"

namespace exfusion {
namespace {

using analysis::Quantity;

constexpr std::int64_t kStoredRoutes = 512;  // sampled tokens whose experts are written

// Whether this rank looked at the layer, at any batch.
bool seen_here(const analysis::TraceLayer& layer) {
  return !layer.tokens.empty();
}

// Fills a group; without anything seen, with NaN.
class Columns {
 public:
  Columns(std::string path, std::int64_t block, bool seen)
      : group_{std::move(path), {}, block}, seen_(seen) {}
  void one(const char* name, double value) { group_.columns.push_back(number(name, seen_ ? value : NAN)); }
  void one(const char* name, const Quantity& value) { one(name, value.defined() ? value.value : NAN); }
  template <class Value>
  void curve(const char* name, const Value& value) {
    one(name, value);
    group_.columns.back().headline = true;
  }
  // NaN for batches that there are not.
  void many(const char* name, std::vector<std::int64_t> shape, std::vector<double> values) {
    values.resize(static_cast<std::size_t>(
                      std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>())),
                  NAN);
    group_.columns.push_back(numbers(name, std::move(shape), std::move(values)));
  }
  void compared(const std::string& name, const analysis::NullComparison& with) {
    one((name + "_mean").c_str(), with.mean);
    one((name + "_sd").c_str(), with.sd);
    curve((name + "_z").c_str(), with.z);
  }
  ObservedGroup finished() { return std::move(group_); }

 private:
  ObservedGroup group_;
  bool seen_;
};

std::vector<double> stored_routes(const TopkSums& sums, std::size_t top_k) {
  const std::size_t tokens = sums.routes.size() / top_k;
  const auto most = static_cast<std::size_t>(kStoredRoutes);
  const std::size_t stride = std::max<std::size_t>(1, tokens / most);
  std::vector<double> routes;
  for (std::size_t t = 0; t < tokens && routes.size() < most * top_k; t += stride)
    routes.insert(routes.end(), sums.routes.begin() + static_cast<std::ptrdiff_t>(t * top_k),
                  sums.routes.begin() + static_cast<std::ptrdiff_t>((t + 1) * top_k));
  return routes;
}

ObservedGroup load_columns(const TopkObservation& of, std::size_t l, const ExpertRedundancy& experts,
                           const ObservationSize& size) {
  const analysis::TraceLayer& layer = of.trace.layers[l];
  const bool seen = seen_here(layer);
  const auto m = static_cast<std::int64_t>(of.trace.experts), k = static_cast<std::int64_t>(of.trace.top_k);
  const TopkDynamics dynamics = seen ? topk_dynamics(of, l, {}) : TopkDynamics{};
  const analysis::Imbalance load =
      seen ? analysis::imbalance(analysis::column_sums(layer.count, of.trace.experts))
           : analysis::Imbalance{};
  Columns columns(layer_path("load", layer.layer), layer.layer, seen);
  columns.many("tokens", {size.batches}, layer.tokens);
  columns.many("count", {size.batches, m}, layer.count);
  columns.many("together", {m, m}, of.sums[l].together);
  columns.many("routes", {kStoredRoutes, k}, stored_routes(of.sums[l], of.trace.top_k));
  columns.many("router_norm", {m}, of.sums[l].router_norms);
  columns.curve("max_mean", load.max_mean);
  columns.one("min_mean", load.min_mean);
  columns.curve("cv", load.cv);
  columns.one("cv_floor",
              analysis::cv_floor(static_cast<double>(m), static_cast<double>(k), of.sums[l].tokens));
  columns.one("gini", load.gini);
  columns.one("exp_h", load.exp_h);
  columns.one("m_sum_sq", load.m_sum_sq);
  columns.one("max_violation", dynamics.max_violation);
  columns.curve("dead", static_cast<double>(dynamics.dead));
  columns.one("mean_entropy", dynamics.mean_entropy);
  columns.one("entropy_of_mean", dynamics.entropy_of_mean);
  columns.curve("information", dynamics.information);
  columns.one("balance_loss", dynamics.balance_loss);
  columns.one("z_loss", dynamics.z_loss);
  columns.one("logit_sd", dynamics.logit_sd);
  columns.one("coactivation", dynamics.coactivation.measured);
  columns.compared("coactivation_null", dynamics.coactivation);
  columns.curve("functional_diversity", experts.functional_diversity);
  columns.many("weight_cosine", {m, m}, experts.weight_cosine);
  columns.many("offset_cosine", {m, m}, experts.offset_cosine);
  return columns.finished();
}

ObservedGroup congestion_columns(const analysis::Trace& trace, const analysis::TraceLayer& layer,
                                 const ObservationSize& size) {
  const bool seen = seen_here(layer);
  const auto m = static_cast<std::int64_t>(trace.experts);
  const analysis::LayerCongestion found =
      seen ? analysis::analyse_congestion(trace, layer, /*intervals=*/false) : analysis::LayerCongestion{};
  Columns columns(layer_path("congestion", layer.layer), layer.layer, seen);
  columns.many("sum_prob", {size.batches, m}, layer.sum_prob);
  columns.many("sum_logit", {size.batches, m}, layer.sum_logit);
  columns.many("sum_logit_sq", {size.batches, m}, layer.sum_logit_sq);
  columns.curve("gamma_eff", found.gamma_eff);
  columns.one("gamma_estimator", found.gamma_estimator == "E3"    ? 3.0  // docs/metrics.md
                                 : found.gamma_estimator == "E1'" ? 1.0
                                                                  : NAN);
  columns.one("gamma_iv", found.gamma_iv);
  columns.curve("temperature", found.temperature);
  columns.curve("gamma_null", found.gamma_null);
  columns.one("gamma_null_closed_form", found.gamma_null_closed_form);
  columns.curve("gamma_excess", found.gamma_excess);
  columns.one("gamma_probe", found.gamma_probe);
  columns.curve("sigma", found.sigma);
  columns.one("sigma_bias", found.sigma_bias);
  columns.one("epsilon_l1", found.epsilon_l1);
  columns.one("epsilon_nash", found.epsilon_nash);
  columns.one("gamma_explicit", found.explicit_part.aux_share_sums_to_1);
  return columns.finished();
}

ObservedGroup score_columns(const TopkObservation& of, std::size_t l, const ObservationSize& size) {
  const analysis::Accumulators& sums = of.sums[l].by_class;
  const std::vector<std::int64_t> shape = {size.classes, static_cast<std::int64_t>(of.trace.experts)};
  Columns columns(layer_path("scores", of.trace.layers[l].layer), of.trace.layers[l].layer, true);
  for (const auto& [name, values] : std::initializer_list<std::pair<const char*, const std::vector<double>&>>{
           {"count", sums.n},
           {"sum_gate", sums.g1},
           {"sum_norm", sums.a1},
           {"sum_norm_sq", sums.a2},
           {"sum_gate_norm", sums.ga},
           {"sum_gate_norm_sq", sums.ga2},
           {"sum_rsd", sums.r},
           {"sum_taylor", sums.t1}})
    columns.many(name, shape, values);
  return columns.finished();
}

void add_specialisation(const TopkObservation& of, std::size_t l, const ObservationSize& size,
                        Columns& columns) {
  const bool seen = seen_here(of.trace.layers[l]);
  const analysis::Specialisation found =
      seen ? analysis::specialisation(of.trace, of.trace.layers[l]) : analysis::Specialisation{};
  columns.many("class_table", {size.classes, static_cast<std::int64_t>(of.trace.experts)},
               of.sums[l].by_class.n);
  columns.curve("nmi", found.nmi);
  columns.one("nmi_corrected", found.nmi_corrected);
  columns.compared("nmi_shuffle", found.shuffle);
  columns.one("nmi_sample", found.router.measured);
  columns.compared("nmi_router", found.router);
}

void add_lens(const LensLayer& found, const ObservationSize& size, Columns& columns) {
  columns.curve("cosine", found.cosine.plain);
  columns.one("cosine_residual", found.cosine.residual);
  columns.curve("cosine_unrelated", found.unrelated.plain);
  columns.one("cosine_unrelated_residual", found.unrelated.residual);
  columns.one("cosine_shuffled", found.shuffled.plain);
  columns.one("cosine_shuffled_residual", found.shuffled.residual);
  columns.one("output_ratio", found.output_ratio);
  columns.curve("divergence", found.divergence);
  columns.one("agreement", found.agreement);
  columns.many("images", {size.classes}, found.images);
  columns.many("label_ensemble", {size.classes}, found.label_ensemble);
  columns.many("label_single", {size.classes}, found.label_single);
}

std::vector<ObservedGroup> lens_columns(const std::vector<FusedSet>& sets, const RoutingSeen& found,
                                        const ObservationSize& size) {
  const TopkObservation& of = found.routing;
  const std::vector<LensLayer>& layers = found.lens;
  std::set<std::int64_t> blocks;
  for (const FusedSet& one : sets) blocks.insert(one.block);
  for (const analysis::TraceLayer& one : of.trace.layers) blocks.insert(one.layer);
  std::vector<ObservedGroup> groups;
  for (const std::int64_t block : blocks) {
    const auto layer = std::ranges::find(layers, block, &LensLayer::block);
    const auto traced = std::ranges::find(of.trace.layers, block, &analysis::TraceLayer::layer);
    Columns columns(layer_path("lens", block), block, layer != layers.end());
    add_lens(layer != layers.end() ? *layer : LensLayer{}, size, columns);
    if (traced != of.trace.layers.end())
      add_specialisation(of, static_cast<std::size_t>(traced - of.trace.layers.begin()), size, columns);
    groups.push_back(columns.finished());
  }
  if (of.trace.layers.empty()) return groups;
  const GateSweep& sweep = found.gates;
  const auto values = [](const std::vector<SweepPoint>& points, double SweepPoint::*of_point) {
    std::vector<double> column;
    for (const SweepPoint& point : points) column.push_back(point.*of_point);
    return column;
  };
  const auto k = static_cast<std::int64_t>(of.trace.top_k);
  Columns columns("lens/gates", kWholeModel, true);
  columns.many("loss_as_is", {k}, values(sweep.as_is, &SweepPoint::loss));
  columns.many("accuracy_as_is", {k}, values(sweep.as_is, &SweepPoint::accuracy));
  columns.many("loss_renormalised", {k}, values(sweep.renormalised, &SweepPoint::loss));
  columns.many("accuracy_renormalised", {k}, values(sweep.renormalised, &SweepPoint::accuracy));
  groups.push_back(columns.finished());
  return groups;
}

}  // namespace

std::vector<ObservedGroup> topk_columns(const Model& model, const std::vector<FusedSet>& sets,
                                        const RoutingSeen& found, const AnalysisConfig& config,
                                        const ObservationSize& size) {
  const TopkObservation& of = found.routing;
  const bool load = config.wants("load");
  std::vector<ExpertRedundancy> redundancy(of.trace.layers.size());
  if (load) redundancy = expert_redundancy(model, of.trace);
  std::vector<ObservedGroup> groups;
  for (std::size_t l = 0; l < of.trace.layers.size(); ++l) {
    if (load) groups.push_back(load_columns(of, l, redundancy[l], size));
    if (config.wants("congestion")) groups.push_back(congestion_columns(of.trace, of.trace.layers[l], size));
    if (config.wants("scores")) groups.push_back(score_columns(of, l, size));
  }
  if (!config.wants("lens")) return groups;
  for (ObservedGroup& group : lens_columns(sets, found, size)) groups.push_back(std::move(group));
  return groups;
}

}  // namespace exfusion
