#include "inspect/training_curves.h"

#include <fmt/format.h>

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "analysis/phases.h"
#include "inspect/json_layers.h"
#include "io/metrics_reader.h"

namespace exfusion {
namespace {

using Json = nlohmann::ordered_json;

// Where a curve is found: a column of metrics.h5, and a place in a layer of the report.
struct Curve {
  const char* name;
  const char* group;
  const char* column;
  const char* place;
};
constexpr Curve kCurves[] = {
    {"gamma_eff", "congestion", "gamma_eff", "/gamma_eff"},
    {"max_mean", "load", "max_mean", "/imbalance/max_mean"},
    {"functional_diversity", "fused", "functional_diversity", "/fused/functional_diversity"},
    {"kappa", "interference", "kappa", "/interference/kappa"},
};

struct Points {
  std::vector<double> steps, values;
};

// Means over layers in which the value is finite, by step.
class LayerMeans {
 public:
  void add(double step, double value) {
    if (!std::isfinite(value) || step < 1.0) return;
    auto& [sum, count] = at_[step];
    sum += value;
    count += 1.0;
  }
  Points points() const {
    Points found;
    for (const auto& [step, mean] : at_) {
      found.steps.push_back(step);
      found.values.push_back(mean.first / mean.second);
    }
    return found;
  }

 private:
  std::map<double, std::pair<double, double>> at_;
};

Points from_reports(const Curve& curve, const Json& earlier, const Json& newest) {
  LayerMeans means;
  const auto add = [&](const Json& report) {
    for (const Json& layer : report.at("layers")) {
      const Json::json_pointer place(curve.place);
      if (layer.contains(place) && layer.at(place).is_number())
        means.add(report.at("model").at("step").get<double>(), layer.at(place).get<double>());
    }
  };
  for (const Json& report : earlier) add(report);
  add(newest);
  return means.points();
}

Points from_metrics(const Curve& curve, const std::filesystem::path& metrics, const Json& newest) {
  LayerMeans means;
  if (!std::filesystem::is_regular_file(metrics)) return {};
  const MetricsReader reader(metrics.string());
  for (const Json& layer : newest.at("layers")) {
    const std::string group =
        fmt::format("analysis/{}/layer_{:03}/", curve.group, layer.at("layer").get<std::int64_t>());
    const auto steps = reader.column(group + "step"), values = reader.column(group + curve.column);
    for (std::size_t i = 0; steps && values && i < std::min(steps->size(), values->size()); ++i)
      means.add((*steps)[i], (*values)[i]);
  }
  return means.points();
}

Json phases_json(const Points& points) {
  const analysis::Phases found = analysis::find_phases(points.steps, points.values);
  Json json = {{"steps", points.steps}, {"values", points.values}};
  if (!found.reason.empty()) return json;
  const analysis::PhaseFit& fit = found.fits[found.claimed];
  json.update({{"breaks", found.claimed},
               {"break_steps", fit.break_steps},
               {"slopes", fit.slopes},
               {"p", found.p},
               {"best_by_bic", found.best_by_bic}});
  return json;
}

}  // namespace

void put_phases(const std::filesystem::path& metrics, const Json& earlier, Json& report) {
  Json fields = {{"phases", Json::object()}, {"undefined", Json::object()}};
  for (const Curve& curve : kCurves) {
    Points points = from_metrics(curve, metrics, report);
    if (points.steps.size() <= earlier.size()) points = from_reports(curve, earlier, report);
    if (points.steps.empty()) continue;
    fields["phases"][curve.name] = phases_json(points);
    if (points.steps.size() >= analysis::kFewestCheckpoints &&
        fields["phases"][curve.name].contains("breaks"))
      continue;
    fields["phases"][curve.name]["breaks"] = nullptr;
    fields["undefined"][std::string("phases.") + curve.name + ".breaks"] =
        points.steps.size() < analysis::kFewestCheckpoints ? "fewer than 8 checkpoints"
                                                           : "the values do not vary";
  }
  add_fields(report["model"], std::move(fields));
}

}  // namespace exfusion
