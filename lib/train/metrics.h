// What a run records: the rows of metrics.h5 and the same scalars for TensorBoard. A row's step is the count
// of finished steps.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "io/metrics_file.h"
#include "io/tensorboard.h"
#include "observe/observation.h"
#include "train/cost.h"
#include "train/evaluation.h"
#include "train/step.h"

namespace exfusion {

class MetricsLog {
 public:
  // `resumed_at`: -1 for a new run; else rows of later steps are dropped.
  // `observed`: the groups of `analysis`. Without `writes` it records nothing, and takes part in what all
  // ranks compute together.
  MetricsLog(const std::filesystem::path& folder, const RunConfig& config, const TrainingState& state,
             const std::vector<ObservedGroup>& observed, std::int64_t resumed_at, bool writes = true);
  // /train and, with banks, /fusion. Times in seconds; they alone differ between a run and its resumed twin.
  void train(const TrainingState& state, const StepResult& result, double step_time, double data_wait);
  // `group`: eval (the test set), validation, ema and ema_validation (the weight average on
  // either).
  void evaluation(const std::string& group, std::int64_t step, const Evaluation& result);
  // /gap: loss and accuracy of the collapsed model minus those of training's forward pass, on the test set.
  void collapse_gap(std::int64_t step, const Evaluation& collapsed, const Evaluation& training);
  // /experts: what the experts have done so far, from their weights (fusion/expert_statistics.h).
  void experts(const TrainingState& state);
  // /cost: what a sample and the run cost (train/cost.h), and what was measured so far.
  void cost(std::int64_t step, const TrainingCost& cost, double samples_per_second);
  // /analysis: a row for each group that the analyses give at this step (train/analysis.h).
  void analysis(std::int64_t step, const std::vector<ObservedGroup>& groups);
  // Makes all rows so far visible to readers, also after a kill.
  void flush();

 private:
  void fusion(const TrainingState& state);
  void append(const std::string& group, std::int64_t step, const MetricsRow& row);
  void scalar(const std::string& name, std::int64_t step, double value);
  std::optional<MetricsFile> file_;
  std::optional<EventFile> events_;
};

}  // namespace exfusion
