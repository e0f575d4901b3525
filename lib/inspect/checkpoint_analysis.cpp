#include "inspect/checkpoint_analysis.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "analysis/report.h"
#include "core/error.h"
#include "inspect/causal_report.h"
#include "inspect/expert_report.h"
#include "inspect/json_layers.h"
#include "observe/knock_out.h"
#include "observe/observation.h"
#include "observe/topk_trace.h"

namespace exfusion {
namespace {

using Json = nlohmann::ordered_json;

bool has(const std::vector<std::string>& groups, const std::string& group) {
  return std::ranges::find(groups, group) != groups.end();
}

bool applies(const std::string& group, const std::string& kind) {
  if (group == "fused") return kind == "fused";
  if (group == "lens" || group == "causal") return kind != "dense";
  return kind == "topk";
}

// ---- columns of observe/observation.h as JSON

Json nested(const ObservedColumn& column, std::size_t dimension, std::size_t& next) {
  if (dimension == column.shape.size()) {
    const double value = column.values[next++];
    return std::isfinite(value) ? Json(value) : Json(nullptr);
  }
  Json list = Json::array();
  for (std::int64_t i = 0; i < column.shape[dimension]; ++i)
    list.push_back(nested(column, dimension + 1, next));
  return list;
}

// Into the layer that the path names, or the model.
void add_group(const ObservedGroup& group, Json& layers, Json& model) {
  const std::size_t slash = group.path.find('/');
  std::string name = group.path.substr(0, slash);
  const std::string place = group.path.substr(slash + 1);
  const bool of_layer = place.starts_with("layer_");
  if (!of_layer) name += "_" + place;
  if (name == "scores") name = "class_sums";  // what the scores are made of; these have the name
  Json fields = {{name, Json::object()}, {"undefined", Json::object()}};
  for (const ObservedColumn& column : group.columns) {
    std::size_t next = 0;
    fields[name][column.name] = nested(column, 0, next);
    if (fields[name][column.name].is_null())
      fields["undefined"][name + "." + column.name] = "undefined on these images";
  }
  add_fields(of_layer ? layer_of(layers, std::stoll(place.substr(sizeof("layer_") - 1))) : model,
             std::move(fields));
}

// ---- routing

const std::set<std::string> kLoadFields = {"imbalance", "cv_floor",      "dead_experts", "domains",
                                           "nmi",       "label_shuffle", "random_router"};
const std::set<std::string> kPlainFields = {"layer", "experts", "top_k", "layers"};

std::string group_of_field(const std::string& field) {
  if (field == "scores") return field;
  return kLoadFields.contains(field) ? "load" : "congestion";
}

Json only_groups(const Json& object, const std::vector<std::string>& groups) {
  return only_fields(object, [&](const std::string& field) {
    return kPlainFields.contains(field) || has(groups, group_of_field(field));
  });
}

// ---- what knock-outs are ranked by

analysis::TraceLayer weighted(const analysis::TraceLayer& layer, std::size_t experts,
                              const std::vector<double>& times) {
  using analysis::TraceLayer;
  analysis::TraceLayer part;
  for (const auto field : {&TraceLayer::count, &TraceLayer::sum_gate, &TraceLayer::sum_norm,
                           &TraceLayer::sum_norm_sq, &TraceLayer::sum_gate_norm,
                           &TraceLayer::sum_gate_norm_sq, &TraceLayer::sum_rsd, &TraceLayer::sum_taylor}) {
    part.*field = layer.*field;
    for (std::size_t i = 0; i < (part.*field).size(); ++i) (part.*field)[i] *= times[i / experts];
  }
  return part;
}

ExpertScores routing_scores(const analysis::TraceLayer& layer, std::size_t experts, const TopkSums& sums) {
  const auto scores_of = [&layer, experts](const std::vector<double>& times) {
    std::vector<analysis::Score> known =
        analysis::expert_scores(accumulate(weighted(layer, experts, times), experts));
    std::erase_if(known, [](const analysis::Score& one) { return !one.reason.empty(); });
    return known;
  };
  ExpertScores found{{}, {}, sums.by_class.n};
  for (const analysis::Score& one : scores_of(std::vector<double>(layer.batches(), 1.0)))
    found.names.push_back(one.name);
  found.of_batches = [scores_of](const std::vector<double>& times) {
    std::vector<std::vector<double>> values;
    for (analysis::Score& one : scores_of(times)) values.push_back(std::move(one.values));
    return values;
  };
  return found;
}

const std::vector<double>& column_of(const ObservedGroup& group, const std::string& name) {
  for (const ObservedColumn& column : group.columns) {
    if (column.name == name) return column.values;
  }
  throw std::out_of_range(group.path + " has no " + name);
}

// [B, N] summed over batches, each counted `times`.
std::vector<double> sum_of_batches(const std::vector<double>& table, const std::vector<double>& times) {
  const std::size_t n = table.size() / times.size();
  std::vector<double> sums(n, 0.0);
  for (std::size_t i = 0; i < table.size(); ++i) sums[i % n] += times[i / n] * table[i];
  return sums;
}

ExpertScores fused_scores(const ObservedGroup& group, const FusedSet& set) {
  const auto n = static_cast<std::size_t>(set.size());
  const std::vector<double>& table = column_of(group, "table");  // [N, C]
  ExpertScores found{
      {"a", "share", "offset_norm", "virtual_load", "first_order", "alpha_saliency"}, {}, table};
  const std::size_t classes = table.size() / n;
  for (std::size_t i = 0; i < table.size(); ++i) found.preference[i % classes * n + i / classes] = table[i];
  found.of_batches = [&group, a = set.a](const std::vector<double>& times) {
    // Of first order: the loss that a_k / (1 - a_k) times a step against D_k costs.
    std::vector<double> first_order = sum_of_batches(column_of(group, "score"), times);
    for (std::size_t k = 0; k < a.size(); ++k) first_order[k] *= a[k] / (1.0 - a[k]);
    std::vector<double> saliency = sum_of_batches(column_of(group, "price_sum"), times);
    for (std::size_t k = 0; k < a.size(); ++k) saliency[k] *= -a[k];
    return std::vector<std::vector<double>>{a,
                                            column_of(group, "share"),
                                            column_of(group, "offset_norm"),
                                            sum_of_batches(column_of(group, "load"), times),
                                            first_order,
                                            saliency};
  };
  return found;
}

Json performance(Model& model, const std::vector<HeldOutBatch>& batches) {
  const at::NoGradGuard no_grad;
  double loss = 0.0, correct = 0.0, images = 0.0;
  for (const HeldOutBatch& batch : batches) {
    const at::Tensor logits = model.forward(batch.images, {});
    loss += at::cross_entropy_loss(logits, batch.labels, {}, at::Reduction::Sum).item<double>();
    correct += logits.argmax(1).eq(batch.labels).sum().item<double>();
    images += static_cast<double>(batch.labels.size(0));
  }
  return {{"batches", batches.size()},
          {"images", static_cast<std::int64_t>(images)},
          {"loss", loss / images},
          {"accuracy", correct / images}};
}

}  // namespace

std::vector<std::string> inspection_group_names() {
  std::vector<std::string> names = analysis_group_names();
  names.push_back("causal");
  return names;
}

std::string experts_kind(const ReadCheckpoint& checkpoint) {
  if (!checkpoint.state.banks.empty()) return "fused";
  return topk_blocks(find_blocks(*checkpoint.state.model)).empty() ? "dense" : "topk";
}

std::vector<std::string> applying_groups(const ReadCheckpoint& checkpoint,
                                         const std::vector<std::string>& given) {
  const bool all = given == std::vector<std::string>{"all"};
  const std::vector<std::string> asked = all ? std::vector<std::string>() : given;
  const std::string kind = experts_kind(checkpoint);
  std::vector<std::string> groups = inspection_group_names();
  for (const std::string& group : asked) {
    if (!has(groups, group))
      throw UsageError(fmt::format("--groups '{}': unknown; choose from {} without spaces, or all alone",
                                   group, fmt::join(groups, ",")));
    if (!applies(group, kind))
      throw UsageError(fmt::format("--groups {}: nothing to look at: the model has {} experts", group,
                                   kind == "dense" ? "no" : kind));
  }
  if (!asked.empty()) return asked;
  std::erase_if(groups, [&](const std::string& group) { return !applies(group, kind); });
  return groups;
}

CheckpointAnalysis analyse_checkpoint(ReadCheckpoint& checkpoint, const std::vector<HeldOutBatch>& batches,
                                      const std::vector<std::string>& groups, const std::string& title,
                                      const std::function<void(double)>& progress) {
  Model& model = *checkpoint.state.model;
  const std::int64_t classes = checkpoint.config.model.vit.classes;
  const std::vector<FusedSet> sets = fused_sets(model, checkpoint.state.banks);
  const std::string kind = experts_kind(checkpoint);
  CheckpointAnalysis found{Json::array(), Json::object(), ""};
  found.model = {{"step", checkpoint.state.step}, {"experts_kind", kind}};
  found.model["held_out"] = performance(model, batches);

  TopkObservation routing;
  std::vector<ExpertScores> scores;
  if (kind == "topk") {
    routing = observe_topk(model, batches, classes, /*gradients=*/true);
    for (std::size_t i = 0; i < routing.sums.size(); ++i)
      scores.push_back(routing_scores(routing.trace.layers[i], routing.trace.experts, routing.sums[i]));
  }
  if (has(groups, "load") || has(groups, "congestion") || has(groups, "scores")) {
    const analysis::TraceAnalysis analysed = analysis::analyse_trace(routing.trace);
    const Json report = report_json(routing.trace, analysed);
    for (const Json& layer : report.at("layers")) found.layers.push_back(only_groups(layer, groups));
    add_fields(found.model, only_groups(report.at("model"), groups));
    found.routing = report_markdown(routing.trace, analysed, title);
  }
  progress(0.0);

  AnalysisConfig wanted{.groups = groups};
  std::erase(wanted.groups, "congestion");                             // is there, with intervals
  if (!has(wanted.groups, "fused")) wanted.groups.push_back("fused");  // class gradients, of any model
  const std::vector<ObservedGroup> observed =
      observe_model(model, sets, batches, wanted, {static_cast<std::int64_t>(batches.size()), classes});
  for (const ObservedGroup& group : observed) {
    add_group(group, found.layers, found.model);
    for (const FusedSet& set : sets) {
      if (group.path == layer_path("fused", set.block)) scores.push_back(fused_scores(group, set));
    }
  }
  if (has(groups, "scores")) put_virtual_scores(observe_topk_scores(model, batches, classes), found.layers);
  progress(0.0);
  if (!has(groups, "causal")) return found;
  const auto first = [&progress](double done) { progress(0.75 * done); };
  const KnockOuts knocked = kind == "topk" ? knock_out_topk(model, batches, classes, first)
                                           : knock_out_fused(model, sets, batches, classes, first);
  put_knock_outs(knocked, scores, found.layers, found.model);
  put_expert_measures(model, sets, batches, knocked.held_out, classes, found.layers,
                      [&progress](double done) { progress(0.75 + 0.25 * done); });
  return found;
}

}  // namespace exfusion
