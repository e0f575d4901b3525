#include "train/metrics.h"

#include <cmath>

#include "fusion/expert_statistics.h"

namespace exfusion {
namespace {

std::vector<SeriesGroup> groups(const RunConfig& config, const TrainingState& state,
                                const std::vector<ObservedGroup>& observed) {
  const std::vector<SeriesColumn> scores = {{"loss"}, {"accuracy"}, {"seconds"}};
  std::vector<SeriesGroup> result = {
      {"train", {{"loss"}, {"lr"}, {"grad_norm"}, {"skipped", true}, {"step_time"}, {"data_wait"}}},
      {"eval", scores}};
  if (config.data.validation > 0) result.push_back({"validation", scores});
  if (state.ema) result.push_back({"ema", scores});
  if (state.ema && config.data.validation > 0) result.push_back({"ema_validation", scores});
  result.push_back({"cost",
                    {{"flops_per_sample"},
                     {"parameters_training"},
                     {"parameters_deployed"},
                     {"state_bytes"},
                     {"peak_memory"},
                     {"samples_per_second"}}});
  if (!state.banks.empty()) {
    const ExpertBank& bank = state.banks.front();
    const auto ffns = static_cast<std::int64_t>(state.banks.size()), n = bank.experts();
    std::vector<SeriesColumn> fusion = {{"a", false, {ffns, n}},
                                        {"price", false, {ffns, n}},
                                        {"sum_abs_a", false, {ffns}},
                                        {"entropy_a", false, {ffns}},
                                        {"wardrop_gap", false, {ffns}}};
    result.push_back({"fusion", std::move(fusion)});
    result.push_back({"experts",
                      {{"share", false, {ffns, n}},
                       {"difference_ratio", false, {ffns}},
                       {"difference_cosine", false, {ffns}},
                       {"difference_predicted"},
                       {"update_participation", false, {ffns}}}});
    result.push_back({"gap", {{"loss"}, {"accuracy"}}});
  }
  for (const ObservedGroup& group : observed) {
    SeriesGroup& series = result.emplace_back(SeriesGroup{"analysis/" + group.path, {}});
    for (const ObservedColumn& column : group.columns)
      series.columns.push_back({column.name, false, column.shape});
  }
  return result;
}

}  // namespace

MetricsLog::MetricsLog(const std::filesystem::path& folder, const RunConfig& config,
                       const TrainingState& state, const std::vector<ObservedGroup>& observed,
                       std::int64_t resumed_at, bool writes) {
  if (!writes) return;
  file_.emplace((folder / "metrics.h5").string(), groups(config, state, observed), resumed_at);
  events_.emplace(folder.string(), resumed_at);
}

void MetricsLog::append(const std::string& group, std::int64_t step, const MetricsRow& row) {
  if (file_) file_->append(group, step, row);
}

void MetricsLog::scalar(const std::string& name, std::int64_t step, double value) {
  if (events_) events_->scalar(name, step, value);
}

void MetricsLog::train(const TrainingState& state, const StepResult& result, double step_time,
                       double data_wait) {
  const std::int64_t step = state.step;
  append("train", step,
         {{"loss", {result.loss}},
          {"lr", {result.lr}},
          {"grad_norm", {result.grad_norm}},
          {"skipped", {static_cast<double>(state.skipped)}},
          {"step_time", {step_time}},
          {"data_wait", {data_wait}}});
  scalar("train/loss", step, result.loss);
  scalar("train/lr", step, result.lr);
  scalar("train/grad_norm", step, result.grad_norm);
  scalar("train/step_time", step, step_time);
  scalar("train/data_wait", step, data_wait);
  if (!state.banks.empty()) fusion(state);
}

void MetricsLog::fusion(const TrainingState& state) {
  std::vector<double> a, price, sum_abs, entropy, gap;
  for (const ExpertBank& bank : state.banks) {
    a.insert(a.end(), bank.a().begin(), bank.a().end());
    price.insert(price.end(), bank.prices().begin(), bank.prices().end());
    sum_abs.push_back(sum_of_sizes(bank.a()));
    entropy.push_back(weight_entropy(bank.a()));
    gap.push_back(wardrop_gap(bank.priced_weights(), bank.prices()));
    const std::string prefix = "fusion/" + bank.name() + "/";
    for (std::size_t k = 0; k < bank.a().size(); ++k)
      scalar(prefix + "a" + std::to_string(k), state.step, bank.a()[k]);
    scalar(prefix + "entropy_a", state.step, entropy.back());
    scalar(prefix + "wardrop_gap", state.step, gap.back());
  }
  append("fusion", state.step,
         {{"a", std::move(a)},
          {"price", std::move(price)},
          {"sum_abs_a", std::move(sum_abs)},
          {"entropy_a", std::move(entropy)},
          {"wardrop_gap", std::move(gap)}});
}

void MetricsLog::experts(const TrainingState& state) {
  if (!file_ && state.banks.front().shard().whole()) return;  // of a shard, every rank adds its part
  std::vector<double> share, size, cosine, participation;
  for (const ExpertBank& bank : state.banks) {
    const ExpertGeometry geometry = measure_geometry(bank, state.decay_product);
    share.insert(share.end(), geometry.shares.begin(), geometry.shares.end());
    size.push_back(geometry.difference_ratio);
    cosine.push_back(geometry.difference_cosine);
    participation.push_back(geometry.update_participation);
    const std::string prefix = "experts/" + bank.name() + "/";
    scalar(prefix + "difference_ratio", state.step, size.back());
    scalar(prefix + "difference_cosine", state.step, cosine.back());
    scalar(prefix + "update_participation", state.step, participation.back());
  }
  append("experts", state.step,
         {{"share", std::move(share)},
          {"difference_ratio", std::move(size)},
          {"difference_cosine", std::move(cosine)},
          {"difference_predicted", {state.decay_product}},
          {"update_participation", std::move(participation)}});
}

void MetricsLog::collapse_gap(std::int64_t step, const Evaluation& collapsed, const Evaluation& training) {
  const double loss = collapsed.loss - training.loss, accuracy = collapsed.accuracy - training.accuracy;
  append("gap", step, {{"loss", {loss}}, {"accuracy", {accuracy}}});
  scalar("gap/loss", step, loss);
  scalar("gap/accuracy", step, accuracy);
}

void MetricsLog::cost(std::int64_t step, const TrainingCost& cost, double samples_per_second) {
  append("cost", step,
         {{"flops_per_sample", {cost.flops_per_sample}},
          {"parameters_training", {cost.parameters_training}},
          {"parameters_deployed", {cost.parameters_deployed}},
          {"state_bytes", {cost.state_bytes}},
          {"peak_memory", {peak_memory()}},
          {"samples_per_second", {samples_per_second}}});
}

void MetricsLog::evaluation(const std::string& group, std::int64_t step, const Evaluation& result) {
  append(group, step,
         {{"loss", {result.loss}}, {"accuracy", {result.accuracy}}, {"seconds", {result.seconds}}});
  scalar(group + "/loss", step, result.loss);
  scalar(group + "/accuracy", step, result.accuracy);
}

void MetricsLog::analysis(std::int64_t step, const std::vector<ObservedGroup>& groups) {
  for (const ObservedGroup& group : groups) {
    MetricsRow row;
    for (const ObservedColumn& column : group.columns) {
      row[column.name] = column.values;
      if (column.headline && std::isfinite(column.values[0]))
        scalar("analysis/" + group.path + "/" + column.name, step, column.values[0]);
    }
    append("analysis/" + group.path, step, row);
  }
}

void MetricsLog::flush() {
  if (!file_) return;
  file_->flush();
  events_->flush();
}

}  // namespace exfusion
