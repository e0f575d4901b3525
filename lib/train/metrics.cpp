#include "train/metrics.h"

namespace exfusion {
namespace {

std::vector<SeriesGroup> groups(const RunConfig& config, const TrainingState& state) {
  const std::vector<SeriesColumn> scores = {{"loss"}, {"accuracy"}, {"seconds"}};
  std::vector<SeriesGroup> result = {
      {"train", {{"loss"}, {"lr"}, {"grad_norm"}, {"skipped", true}, {"step_time"}, {"data_wait"}}},
      {"eval", scores}};
  if (config.data.validation > 0) result.push_back({"validation", scores});
  if (state.ema) result.push_back({"ema", scores});
  if (!state.banks.empty()) {
    const auto ffns = static_cast<std::int64_t>(state.banks.size());
    result.push_back({"fusion", {{"a", false, {ffns, state.banks.front().experts()}}}});
  }
  return result;
}

}  // namespace

MetricsLog::MetricsLog(const std::filesystem::path& folder, const RunConfig& config,
                       const TrainingState& state, std::int64_t resumed_at)
    : file_((folder / "metrics.h5").string(), groups(config, state), resumed_at),
      events_(folder.string(), resumed_at) {}

void MetricsLog::train(const TrainingState& state, const StepResult& result, double step_time,
                       double data_wait) {
  const std::int64_t step = state.step;
  file_.append("train", step,
               {{"loss", {result.loss}},
                {"lr", {result.lr}},
                {"grad_norm", {result.grad_norm}},
                {"skipped", {static_cast<double>(state.skipped)}},
                {"step_time", {step_time}},
                {"data_wait", {data_wait}}});
  events_.scalar("train/loss", step, result.loss);
  events_.scalar("train/lr", step, result.lr);
  events_.scalar("train/grad_norm", step, result.grad_norm);
  events_.scalar("train/step_time", step, step_time);
  events_.scalar("train/data_wait", step, data_wait);
  if (state.banks.empty()) return;
  std::vector<double> a;
  for (const ExpertBank& bank : state.banks) {
    for (std::size_t k = 0; k < bank.a().size(); ++k) {
      a.push_back(bank.a()[k]);
      events_.scalar("fusion/" + bank.name() + "/a" + std::to_string(k), step, bank.a()[k]);
    }
  }
  file_.append("fusion", step, {{"a", std::move(a)}});
}

void MetricsLog::evaluation(const std::string& group, std::int64_t step, const Evaluation& result) {
  file_.append(group, step,
               {{"loss", {result.loss}}, {"accuracy", {result.accuracy}}, {"seconds", {result.seconds}}});
  events_.scalar(group + "/loss", step, result.loss);
  events_.scalar(group + "/accuracy", step, result.accuracy);
}

void MetricsLog::flush() {
  file_.flush();
  events_.flush();
}

}  // namespace exfusion
