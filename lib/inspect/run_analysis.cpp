#include "inspect/run_analysis.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/log.h"
#include "inspect/checkpoint_analysis.h"
#include "inspect/progress_line.h"
#include "inspect/summary.h"
#include "inspect/training_curves.h"
#include "train/checkpoint.h"
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

}  // namespace

RunAnalysis analyse_run(const fs::path& path, const AnalysisRequest& request) {
  const InterruptScope interrupts;
  const std::vector<fs::path> checkpoints = checkpoints_at(path);
  const std::string name = fs::absolute(path).lexically_normal().filename().string();
  RunAnalysis analysed;
  HeldOut images;
  std::string routing;
  Json earlier = Json::array();
  for (const fs::path& folder : checkpoints) {
    const bool newest = folder == checkpoints.back();
    ReadCheckpoint checkpoint = read_with_experts(folder, request.data_sets);
    std::vector<std::string> groups = applying_groups(checkpoint, request.groups);
    if (!newest) std::erase(groups, "causal");
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
  analysed.markdown = summary_markdown(name, analysed.report, routing);
  return analysed;
}

}  // namespace exfusion
