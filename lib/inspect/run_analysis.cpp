#include "inspect/run_analysis.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.h"
#include "inspect/checkpoint_analysis.h"
#include "inspect/logged_congestion.h"
#include "inspect/progress_line.h"
#include "inspect/summary.h"
#include "inspect/training_curves.h"
#include "io/metrics_reader.h"
#include "train/interrupt.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr std::int64_t kMostImages = 64;  // in a batch

struct HeldOut {
  std::string split;
  std::vector<HeldOutBatch> batches;
};

HeldOut held_out(const RunConfig& config, std::int64_t batches) {
  const Datasets data = make_datasets(config.data, config.seed, config.model.image_shape());
  const Dataset& split = data.validation ? *data.validation : *data.test;
  const std::int64_t size = std::clamp<std::int64_t>(split.size() / batches, 1, kMostImages);
  return {data.validation ? "validation" : "test",
          held_out_batches(split, config.data, config.model.vit.classes, batches, size)};
}

// What would be said at the end of long work is said at its start.
void expect_readable(const fs::path& metrics) {
  if (!fs::is_regular_file(metrics)) return;
  try {
    const MetricsReader reader(metrics.string());
  } catch (const FormatError& error) {
    throw FormatError(fmt::format("{}; move it away to analyse the checkpoints alone", error.what()));
  }
}

// The run's name, of a checkpoint in its place too, whatever link led there.
std::string run_name(const fs::path& path) {
  const fs::path place = fs::canonical(path);
  const bool of_run = place.parent_path().filename() == "checkpoints";
  return (of_run ? place.parent_path().parent_path() : place).filename().string();
}

}  // namespace

RunAnalysis analyse_run(const fs::path& path, const AnalysisRequest& request) {
  const InterruptScope interrupts;
  const std::vector<fs::path> checkpoints = checkpoints_at(path);
  expect_readable(path / "metrics.h5");
  const std::string name = run_name(path);
  RunAnalysis analysed;
  HeldOut images;
  std::string routing;
  bool looked_at_congestion = false;
  Json earlier = Json::array();
  for (const fs::path& folder : checkpoints) {
    const bool newest = folder == checkpoints.back();
    ReadCheckpoint checkpoint = read_with_experts(folder, request.data_sets);
    std::vector<std::string> groups = applying_groups(checkpoint, request.groups);
    if (!newest) std::erase(groups, "causal");
    looked_at_congestion = std::ranges::count(groups, "congestion") > 0;
    if (images.batches.empty()) images = held_out(checkpoint.config, request.batches);
    ProgressLine progress(
        fmt::format("{} ({} of {})", folder.filename().string(), earlier.size() + 1, checkpoints.size()));
    CheckpointAnalysis found =
        analyse_checkpoint(checkpoint, images.batches, groups,
                           fmt::format("{}, step {}", name, checkpoint.state.step), std::ref(progress));
    found.model["held_out"]["split"] = images.split;
    Json& report = newest ? analysed.report : earlier.emplace_back();
    report = {{"layers", std::move(found.layers)}, {"model", std::move(found.model)}};
    routing = std::move(found.routing);
  }
  put_phases(path / "metrics.h5", earlier, analysed.report);
  if (!earlier.empty()) analysed.report["checkpoints"] = std::move(earlier);
  if (looked_at_congestion) {
    ProgressLine progress("congestion over training");
    Json training = logged_congestion(path / "metrics.h5", analysed.report.at("layers"), std::ref(progress));
    if (!training.empty()) analysed.report["training"] = std::move(training);
  }
  analysed.markdown = summary_markdown(name, analysed.report, routing);
  return analysed;
}

}  // namespace exfusion
