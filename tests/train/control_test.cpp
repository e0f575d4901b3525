#include "train/control.h"

#include <cmath>

#include "finished_run.h"
#include "io/metrics_reader.h"

namespace exfusion {
namespace {

const std::string kFusion = "fusion={experts: 4, weights: learned, layers: [1]}";

void expect_same_parameters(const TinyRun& found, const TinyRun& expected) {
  for (const auto& item : expected.state.model->named_parameters())
    EXPECT_TRUE(at::equal(found.parameter(item.key()), item.value().detach())) << item.key();
}

TEST(Control, DenseIsTheRecipeWithoutFusion) {
  TinyRun control({kFusion, "control=dense"}), dense;
  EXPECT_TRUE(control.state.banks.empty());
  control.steps(3);
  dense.steps(3);
  expect_same_parameters(control, dense);
}

TEST(Control, InitScaledStartsTheFfnsThatWouldBeFusedAtStdOverRootN) {
  const TinyRun control({kFusion, "control=dense_init_scaled"}), dense;
  EXPECT_TRUE(control.state.banks.empty());
  for (const auto& item : dense.state.model->named_parameters()) {
    const bool scaled = item.key().starts_with("blocks.1.mlp.") && item.key().ends_with(".weight");
    EXPECT_TRUE(at::equal(control.parameter(item.key()), item.value().detach() * (scaled ? 0.5 : 1.0)))
        << item.key();
  }
}

TEST(Control, Lr2IsDenseWithTwiceTheLearningRate) {
  TinyRun control({kFusion, "control=dense_lr2"}), dense({"optim.lr=0.02"});
  control.steps(3);
  dense.steps(3);
  expect_same_parameters(control, dense);
}

TEST(Control, GainStartsAsDenseAndLearnsOneFactorPerFfn) {
  TinyRun control({kFusion, "control=dense_gain"});
  const TinyRun dense;
  expect_same_parameters(control, dense);
  ASSERT_EQ(control.state.banks.size(), 1u);
  EXPECT_EQ(control.state.banks[0].name(), "blocks.1.mlp");
  EXPECT_EQ(control.state.banks[0].a(), std::vector<float>{1.0f});
  control.steps(3);
  EXPECT_NE(control.state.banks[0].a()[0], 1.0f);
}

TEST(Control, LrScaledTakesTheMeanSumOfWeightsOfTheFusedRun) {
  log_set_quiet(true);
  const TestFolder folder;
  const std::string fusion = "fusion={experts: 3, weights: learned, normalize: none, lr: 0.2, layers: [1]}";
  train_run(TinyRun({fusion}), folder / "fused");
  const auto rows =
      MetricsReader((folder / "fused/metrics.h5").string()).column("fusion/sum_abs_a", 1).value();
  double mean = 0.0;
  for (const double s : rows) mean += s / static_cast<double>(rows.size());
  EXPECT_GT(std::abs(mean - 1.0), 0.01);

  const TinyRun control({fusion, "control=dense_lr_scaled", "control_from=" + (folder / "fused").string()});
  EXPECT_TRUE(control.state.banks.empty());
  for (const ParameterSlot& slot : control.state.parameters->slots())
    EXPECT_DOUBLE_EQ(slot.lr_scale, slot.name.starts_with("blocks.1.mlp.") ? mean : 1.0) << slot.name;
}

TEST(Control, LrScaledGoesOnWithoutTheFusedRun) {
  log_set_quiet(true);
  const TestFolder folder;
  const std::string fusion = "fusion={experts: 3, weights: learned, normalize: none, lr: 0.2, layers: [1]}";
  train_run(TinyRun({fusion}), folder / "fused");
  const std::vector<std::string> sets = {fusion, "control=dense_lr_scaled",
                                         "control_from=" + (folder / "fused").string(),
                                         "checkpoint={every_steps: 1, keep: 9}"};
  const TinyRun run(sets);
  train_run(run, folder / "whole");
  std::filesystem::copy(
      folder / "whole", folder / "cut",
      std::filesystem::copy_options::recursive | std::filesystem::copy_options::copy_symlinks);
  for (int step = 3; step <= 6; ++step)
    std::filesystem::remove_all(folder / "cut/checkpoints" / ("step-0000000" + std::to_string(step)));
  std::filesystem::remove_all(folder / "cut/export");
  std::filesystem::remove_all(folder / "fused");
  resume_run(run, folder / "cut");
  EXPECT_TRUE(read_bytes(folder / "cut/export/model.safetensors") ==
              read_bytes(folder / "whole/export/model.safetensors"));
}

TEST(Control, LrScaledNeedsAFinishedRunOfTheSameExpertsAndLayers) {
  log_set_quiet(true);
  const TestFolder folder;
  const std::string free = "fusion={experts: 3, weights: learned, normalize: none, lr: 0.2, layers: [1]}";
  train_run(TinyRun({free}), folder / "fused");
  const auto scaled = [&](const std::string& fusion) {
    return [&, fusion] {
      TinyRun({fusion, "control=dense_lr_scaled", "control_from=" + (folder / "fused").string()});
    };
  };
  expect_error<CheckpointError>(scaled("fusion={experts: 2, layers: [1]}"), {"3 experts", "2"});
  expect_error<CheckpointError>(scaled("fusion={experts: 3, layers: [0]}"), {"other layers"});
  std::filesystem::remove_all(folder / "fused/export");
  expect_error<CheckpointError>(scaled(free), {"not finished"});
  std::filesystem::remove_all(folder / "fused");
  expect_error<CheckpointError>(scaled(free), {"not a run's folder"});
}

TEST(Control, LrScaledIsNotRunWhereItIsDense) {
  log_set_quiet(true);
  const TestFolder folder;
  train_run(TinyRun({kFusion}), folder / "fused");
  expect_error<RecipeError>(
      [&] {
        TinyRun({kFusion, "control=dense_lr_scaled", "control_from=" + (folder / "fused").string()});
      },
      {"identical to dense", "fused"});
  expect_error<CheckpointError>(
      [&] {
        train_run(TinyRun(), folder / "dense");
        TinyRun({kFusion, "control=dense_lr_scaled", "control_from=" + (folder / "dense").string()});
      },
      {"not a fused run", "dense"});
}

TEST(Control, OfAnUpcycledRecipeStartsFromTheSameDenseModel) {
  log_set_quiet(true);
  const TestFolder folder;
  train_run(TinyRun(), folder / "source");
  const std::string upcycled =
      "fusion={experts: 3, weights: memory, init: copy, from: " + (folder / "source").string() + "}";
  const TinyRun source({"init_from=" + (folder / "source").string()});
  for (const std::string control : {"none", "dense", "dense_lr2", "dense_gain"})
    expect_same_parameters(TinyRun({upcycled, "control=" + control}), source);
  expect_error<RecipeError>(
      [&] {
        TinyRun({upcycled, "control=dense_init_scaled"});
      },
      {"identical to dense"});
  expect_error<RecipeError>(
      [&] {
        TinyRun({kFusion, "init_from=" + (folder / "source").string()});
      },
      {"fusion.from"});
  EXPECT_NE(TinyRun({kFusion, "control=dense", "init_from=" + (folder / "source").string()}).config.init_from,
            "");
}

TEST(Control, NeedsAFusedRecipeAndKnowsItsOwnKeys) {
  expect_error<RecipeError>([] { TinyRun({"control=dense"}); }, {"control", "no fusion"});
  expect_error<RecipeError>([] { TinyRun({kFusion, "control=dens"}); }, {"control", "dense"});
  expect_error<RecipeError>([] { TinyRun({kFusion, "control=dense_lr_scaled"}); }, {"control_from"});
  expect_error<RecipeError>(
      [] {
        TinyRun({kFusion, "control=dense", "control_from=runs/x"});
      },
      {"control_from", "dense_lr_scaled"});
}

}  // namespace
}  // namespace exfusion
