#include "inspect/logged_congestion.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "analysis/report.h"
#include "core/error.h"
#include "inspect/json_layers.h"
#include "io/metrics_reader.h"

namespace exfusion {
namespace {

using analysis::TraceLayer;
using Json = nlohmann::ordered_json;

const std::set<std::string> kFields = {
    "layer",      "gamma_eff",    "gamma_ci",        "gamma_iv", "gamma_estimator",  "temperature",
    "gamma_null", "gamma_excess", "gamma_excess_ci", "sigma",    "gamma_by_quality", "gamma_null_by_quality"};

// What one layer's rows hold; tables row by row. B batches, M experts, K per token.
struct LoggedLayer {
  std::int64_t number = 0;
  std::size_t batches = 0, experts = 0, top_k = 0;
  std::vector<double> steps, tokens, count, sum_prob, sum_logit, sum_logit_sq,
      sigma;  // [rows], [rows, B], ...
};

// Rows that are whole are those of `step`, which is written last.
std::vector<double> logged_column(const MetricsReader& reader, const std::string& path, std::size_t width,
                                  std::size_t rows) {
  std::vector<double> values = reader.column(path, width).value_or(std::vector<double>());
  const std::size_t expected = rows * std::max<std::size_t>(width, 1);
  if (values.size() < expected)
    throw FormatError(fmt::format("metrics.h5: {} has fewer rows than the steps beside it", path));
  values.resize(expected);
  return values;
}

std::optional<LoggedLayer> read_layer(const MetricsReader& reader, std::int64_t number) {
  const std::string load = fmt::format("analysis/load/layer_{:03}/", number),
                    routing = fmt::format("analysis/congestion/layer_{:03}/", number);
  const auto count = reader.row_shape(load + "count"), routes = reader.row_shape(load + "routes");
  const auto steps = reader.column(routing + "step");
  if (!count || !routes || !steps || count->size() != 2 || routes->size() != 2) return std::nullopt;
  if (count->at(1) < 2 || routes->at(1) > count->at(1)) return std::nullopt;
  LoggedLayer layer{number, count->at(0), count->at(1), routes->at(1), *steps, {}, {}, {}, {}, {}, {}};
  const std::size_t rows = layer.steps.size(), table = layer.batches * layer.experts;
  layer.tokens = logged_column(reader, load + "tokens", layer.batches, rows);
  layer.count = logged_column(reader, load + "count", table, rows);
  layer.sum_prob = logged_column(reader, routing + "sum_prob", table, rows);
  layer.sum_logit = logged_column(reader, routing + "sum_logit", table, rows);
  layer.sum_logit_sq = logged_column(reader, routing + "sum_logit_sq", table, rows);
  layer.sigma = logged_column(reader, routing + "sigma", 0, rows);
  return layer;
}

// The sample of logits is not kept, but the sigma that was measured on it, centred per token: scales the
// spread within batches so that the sums, pooled over batches, have that sigma.
void scale_to_sigma(double sigma, std::size_t experts, TraceLayer& layer) {
  std::vector<double> sums(experts, 0.0);
  double between = 0.0, squares = 0.0, tokens = 0.0;  // sums over experts
  const auto of_means = [&](std::size_t i) {
    return layer.sum_logit[i] * layer.sum_logit[i] / layer.tokens[i / experts];
  };
  for (std::size_t i = 0; i < layer.sum_logit.size(); ++i) {
    sums[i % experts] += layer.sum_logit[i];
    between += of_means(i);
    squares += layer.sum_logit_sq[i];
  }
  for (const double one : layer.tokens) tokens += one;
  const double within = squares - between;
  for (const double one : sums) between -= one * one / tokens;
  const double wanted = sigma * sigma * tokens * static_cast<double>(experts) - between;
  if (!std::isfinite(sigma) || !(within > 0.0)) return;
  const double scale = std::max(wanted, 0.0) / within;
  for (std::size_t i = 0; i < layer.sum_logit_sq.size(); ++i)
    layer.sum_logit_sq[i] = of_means(i) + scale * (layer.sum_logit_sq[i] - of_means(i));
}

TraceLayer layer_at(const LoggedLayer& logged, std::size_t row) {
  TraceLayer layer;
  layer.layer = logged.number;
  for (std::size_t b = 0; b < logged.batches; ++b) {
    const std::size_t place = row * logged.batches + b;
    if (std::isnan(logged.tokens[place])) continue;  // fewer held-out images than batches
    layer.tokens.push_back(logged.tokens[place]);
    const auto append = [&](const std::vector<double>& from, std::vector<double>& to) {
      const auto first = from.begin() + static_cast<std::ptrdiff_t>(place * logged.experts);
      to.insert(to.end(), first, first + static_cast<std::ptrdiff_t>(logged.experts));
    };
    append(logged.count, layer.count);
    append(logged.sum_prob, layer.sum_prob);
    append(logged.sum_logit, layer.sum_logit);
    append(logged.sum_logit_sq, layer.sum_logit_sq);
  }
  scale_to_sigma(logged.sigma[row], logged.experts, layer);
  return layer;
}

Json report_at(const std::vector<LoggedLayer>& logged, std::size_t row, const std::string& file) {
  analysis::Trace trace;
  trace.experts = logged.front().experts;
  trace.top_k = logged.front().top_k;
  for (const LoggedLayer& one : logged) trace.layers.push_back(layer_at(one, row));
  analysis::check_trace(trace, fmt::format("{}: step {}", file, logged.front().steps[row]));
  const Json report = report_json(trace, analysis::analyse_trace(trace));
  Json found = {{"layers", Json::array()},
                {"model", {{"step", static_cast<std::int64_t>(logged.front().steps[row])}}}};
  const auto wanted = [](const std::string& field) { return kFields.contains(field); };
  for (const Json& layer : report.at("layers")) found["layers"].push_back(only_fields(layer, wanted));
  found["model"].update(only_fields(report.at("model"), wanted));
  return found;
}

}  // namespace

Json logged_congestion(const std::filesystem::path& metrics, const Json& layers,
                       const std::function<void(double)>& progress) {
  Json reports = Json::array();
  if (!std::filesystem::is_regular_file(metrics)) return reports;
  const MetricsReader reader(metrics.string());
  std::vector<LoggedLayer> logged;
  for (const Json& layer : layers) {
    if (auto found = read_layer(reader, layer.at("layer").get<std::int64_t>()))
      logged.push_back(std::move(*found));
  }
  const auto differs = [&](const LoggedLayer& one) {
    return one.experts != logged.front().experts || one.top_k != logged.front().top_k ||
           one.steps != logged.front().steps;
  };
  if (logged.empty() || std::ranges::any_of(logged, differs)) return reports;
  const std::size_t rows = logged.front().steps.size();
  for (std::size_t row = 0; row < rows; ++row) {
    progress(static_cast<double>(row) / static_cast<double>(rows));
    reports.push_back(report_at(logged, row, metrics.string()));
  }
  return reports;
}

}  // namespace exfusion
