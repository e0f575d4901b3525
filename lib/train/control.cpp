#include "train/control.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>
#include <filesystem>

#include "core/error.h"
#include "core/log.h"
#include "core/recipe.h"
#include "io/metrics_reader.h"
#include "models/model.h"
#include "nn/ffn.h"
#include "train/run_config.h"

namespace exfusion {
namespace {

// A finished run of a recipe with the same model and fused blocks, or an error that says what it is instead.
void check_fused_run(const ControlConfig& control) {
  const std::filesystem::path run = control.from;
  const auto refuse = [&](const std::string& what) {
    throw CheckpointError(fmt::format("control_from: {}: {}; it must be a finished run of the fused recipe",
                                      run.string(), what));
  };
  if (!std::filesystem::is_regular_file(run / "recipe.yaml")) refuse("not a run's folder");
  if (!std::filesystem::is_directory(run / "export")) refuse("not finished (it has no export/)");
  Recipe recipe = Recipe::load((run / "recipe.yaml").string(), {});
  const RunConfig fused = parse_run(recipe);
  if (!fused.fusion) refuse("not a fused run");
  if (fused.fusion->experts != control.experts)
    refuse(fmt::format("has {} experts per FFN, this recipe {}", fused.fusion->experts, control.experts));
  if (fused.fusion->layers != control.layers) refuse("fuses other layers than this recipe");
}

// [ffns] The mean of sum_k |a_k| over a run's steps.
std::vector<double> mean_sum_of_sizes(const std::string& run, std::size_t ffns) {
  const std::string file = (std::filesystem::path(run) / "metrics.h5").string();
  const auto rows = MetricsReader(file).column("fusion/sum_abs_a", ffns);
  if (!rows || rows->empty())
    throw CheckpointError(
        fmt::format("{}: has no rows of fusion/sum_abs_a for {} FFNs; control_from must be a "
                    "finished run of the same fused recipe",
                    file, ffns));
  std::vector<double> mean(ffns, 0.0);
  for (std::size_t i = 0; i < rows->size(); ++i)
    mean[i % ffns] += (*rows)[i] / static_cast<double>(rows->size() / ffns);
  return mean;
}

}  // namespace

std::vector<std::string> control_names() {
  return {"none", "dense", "dense_init_scaled", "dense_lr_scaled", "dense_lr2", "dense_gain"};
}

ControlConfig parse_control(Section& root, std::optional<FusionConfig>& fusion, AdamWConfig& optim) {
  ControlConfig control;
  control.name = root.one_of("control", control.name, control_names());
  if (control.name == "dense_lr_scaled") {
    control.from = root.get<std::string>("control_from", "");
    if (control.from.empty())
      root.problem("control_from",
                   "control_from must name a finished run of the fused recipe: its weights a "
                   "give dense_lr_scaled its factors");
  } else {
    root.without_effect("control_from", "control_from belongs to control: dense_lr_scaled");
  }
  if (control.name == "none") return control;
  if (!fusion) {
    root.problem("control",
                 "control stands beside a fused recipe and takes its experts and layers from there; "
                 "this one has no fusion");
    return control;
  }
  control.experts = fusion->experts;
  control.layers = fusion->layers;
  const std::string from = fusion->from;
  fusion.reset();
  if (control.name == "dense_init_scaled" && !from.empty())
    root.problem("control",
                 "dense_init_scaled scales fresh initial values; with fusion.from there are none, and it "
                 "would be identical to dense");
  if (control.name == "dense_lr2") optim.lr *= 2.0;
  if (control.name == "dense_gain") {
    fusion = FusionConfig{.experts = 1, .weights = "learned", .normalize = "none"};
    fusion->layers = control.layers;
    fusion->from = from;
    if (!from.empty()) fusion->init = "copy";
  }
  return control;
}

void scale_initial_values(const ControlConfig& control, const Model& model) {
  if (control.name != "dense_init_scaled") return;
  const at::NoGradGuard no_grad;
  for (const NamedFfn& ffn : select_ffns(model, control.layers)) {
    const auto tensors = ffn.ffn->parameters_in_order();
    for (std::size_t t : {0u, 2u}) tensors[t].mul_(1.0 / std::sqrt(static_cast<double>(control.experts)));
  }
}

void scale_learning_rates(const ControlConfig& control, const Model& model, bool read_run,
                          std::vector<ParameterSlot>& slots) {
  if (control.name != "dense_lr_scaled") return;
  const std::vector<NamedFfn> ffns = select_ffns(model, control.layers);
  if (read_run) check_fused_run(control);
  const std::vector<double> factors = read_run ? mean_sum_of_sizes(control.from, ffns.size())
                                               : std::vector<double>(ffns.size(), std::nan(""));
  bool all_one = true;
  for (std::size_t i = 0; i < ffns.size(); ++i) {
    if (read_run && !(factors[i] > 1e-6 && factors[i] < 1e6))
      throw CheckpointError(
          fmt::format("{}: {} has the mean sum |a| {}", control.from, ffns[i].name, factors[i]));
    if (read_run)
      log_info("control dense_lr_scaled: {}: learning rate times {:.4f}", ffns[i].name, factors[i]);
    all_one = all_one && std::abs(factors[i] - 1.0) < 1e-5;  // what fp32 weights of a softmax sum to
    for (ParameterSlot& slot : slots) {
      if (slot.name.starts_with(ffns[i].name + ".")) slot.lr_scale = factors[i];
    }
  }
  if (all_one)
    throw RecipeError(
        fmt::format("control: dense_lr_scaled is identical to dense here: sum |a| was 1 in every "
                    "FFN throughout {}; not run",
                    control.from));
}

}  // namespace exfusion
