#include "train/model_source.h"

#include <gtest/gtest.h>

#include "finished_run.h"
#include "train/checkpoint.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;

class LoadModel : public FinishedRun {};

TEST_F(LoadModel, ARunItsNewestCheckpointAndItsExportAreOneModel) {
  const LoadedModel run_model = load_model(run(), "last");
  EXPECT_EQ(run_model.step, 6);
  EXPECT_EQ(run_model.origin.filename(), "step-00000006");
  EXPECT_EQ(run_model.config.vit.dim, 16);
  ASSERT_TRUE(run_model.run);
  EXPECT_EQ(run_model.run->name, "tiny");
  EXPECT_EQ(run_model.test_accuracy, outcome_.accuracy_fp32);
  const at::Tensor expected = logits(*run_model.model);
  for (const fs::path& path : {checkpoint("step-00000006"), checkpoint("latest"), run() / "export"}) {
    const LoadedModel found = load_model(path, "last");
    EXPECT_TRUE(at::equal(logits(*found.model), expected)) << path;
    EXPECT_EQ(found.mean, run_model.mean);
    EXPECT_EQ(found.std, run_model.std);
  }
  EXPECT_FALSE(load_model(run() / "export", "last").run);
}

TEST_F(LoadModel, AnEarlierCheckpointIsAnotherModel) {
  const LoadedModel earlier = load_model(checkpoint("step-00000002"), "last");
  EXPECT_EQ(earlier.step, 2);
  EXPECT_FALSE(earlier.test_accuracy);  // not evaluated at this step
  EXPECT_FALSE(at::equal(logits(*earlier.model), logits(*load_model(run(), "last").model)));
}

TEST_F(LoadModel, BestIsWhatTheLinkPointsAt) {
  const LoadedModel best = load_model(run(), "best");
  EXPECT_EQ(best.step, read_checkpoint(checkpoint("step-00000006")).best_step);
  EXPECT_EQ(best.test_accuracy, outcome_.best_accuracy);
}

TEST_F(LoadModel, TheAverageHasItsOwnWeightsAndAccuracy) {
  const LoadedModel average = load_model(run(), "ema"), last = load_model(run(), "last");
  EXPECT_FALSE(at::equal(logits(*average.model), logits(*last.model)));
  EXPECT_EQ(average.test_accuracy, read_checkpoint(checkpoint("latest")).ema_accuracy);
  const SafetensorsFile file((checkpoint("latest") / "ema.safetensors").string());
  EXPECT_TRUE(at::equal(average.model->named_parameters()["head.weight"], file.read("head.weight")));
}

TEST_F(LoadModel, WhatAFolderDoesNotHoldIsRefused) {
  expect_error<CheckpointError>([] { load_model(checkpoint("step-00000006"), "best"); },
                                {"step-00000006", "best"});
  expect_error<CheckpointError>([] { load_model(run() / "export", "best"); }, {"export", "best"});
  expect_error<CheckpointError>([] { load_model(run() / "export", "ema"); }, {"export", "ema"});
  expect_error<CheckpointError>([] { load_model(*root_ / "nothing", "last"); },
                                {"nothing", "no such folder"});
  fs::create_directories(*root_ / "empty");
  expect_error<CheckpointError>([] { load_model(*root_ / "empty", "last"); },
                                {"empty", "checkpoints/", "config.json"});
  const TestFolder other;
  train_run(TinyRun({"train.steps=1"}), other / "run");
  expect_error<CheckpointError>([&] { load_model(other / "run", "ema"); }, {"train.ema"});
}

TEST_F(LoadModel, ADamagedNewestCheckpointGivesWayToTheOneBefore) {
  fs::copy(run(), *root_ / "damaged", fs::copy_options::recursive | fs::copy_options::copy_symlinks);
  fs::resize_file(*root_ / "damaged/checkpoints/step-00000006/model.safetensors", 100);
  EXPECT_EQ(load_model(*root_ / "damaged", "last").step, 5);
}

TEST_F(LoadModel, WeightsMustBeThoseOfTheModel) {
  LoadedModel loaded = load_model(run() / "export", "last");
  NamedTensors tensors;
  for (const auto& item : loaded.model->named_parameters())
    tensors.emplace_back(item.key(), item.value().detach().clone());
  const std::string file = (*root_ / "weights.safetensors").string();
  const auto refused = [&](const NamedTensors& changed, const std::string& fragment) {
    write_safetensors(file, changed);
    expect_error<FormatError>([&] { load_weights(file, *loaded.model); }, {"weights.safetensors", fragment});
  };
  NamedTensors changed = tensors;
  changed.emplace_back("intruder", at::zeros({1}));
  refused(changed, "'intruder'");
  changed = tensors;
  changed.pop_back();
  refused(changed, "'" + tensors.back().first + "'");
  changed = tensors;
  changed.back().second = at::zeros({1, 2, 3});
  refused(changed, tensors.back().first);
  write_bytes(file, "garbage");
  expect_error<FormatError>([&] { load_weights(file, *loaded.model); }, {"weights.safetensors"});
}

}  // namespace
}  // namespace exfusion
