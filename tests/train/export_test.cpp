#include "train/export.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "finished_run.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;

class ExportTimm : public FinishedRun {};

TEST_F(ExportTimm, WritesAModelThatReadsBackWithTheSameLogits) {
  const LoadedModel source = load_model(run(), "last");
  export_timm(source, *root_ / "new/deep/model", false);
  const LoadedModel again = load_model(*root_ / "new/deep/model", "last");
  EXPECT_TRUE(at::equal(logits(*again.model), logits(*source.model)));
  EXPECT_EQ(again.config.vit.hidden, source.config.vit.hidden);
  EXPECT_FALSE(fs::exists(*root_ / "new/deep/model.tmp"));
}

TEST_F(ExportTimm, TheFolderMayBeWrittenWithASlashAtItsEnd) {
  export_timm(load_model(run(), "last"), *root_ / "slash/", false);
  EXPECT_TRUE(fs::exists(*root_ / "slash/model.safetensors"));
}

TEST_F(ExportTimm, TheWeightsAreTheDenseModelAlone) {
  const SafetensorsFile file((run() / "export/model.safetensors").string());
  EXPECT_EQ(file.tensors().size(), TinyRun().state.model->named_parameters().size());
  EXPECT_EQ(file.tensors().at("blocks.0.mlp.fc1.weight").shape, (std::vector<std::int64_t>{64, 16}));
}

TEST_F(ExportTimm, TheCardNamesRecipeAndAccuracy) {
  const LoadedModel source = load_model(run(), "last");
  const std::string card = read_bytes(run() / "export/README.md");
  for (const std::string& part : {source.recipe_crc32, std::string("learned"), std::string("synthetic"),
                                  fmt::format("| test accuracy | {:.4f} |", *source.test_accuracy)})
    EXPECT_NE(card.find(part), std::string::npos) << part << " is not in\n" << card;
}

// config.json has one mean and std per channel, also where the recipe gives one for all.
TEST_F(ExportTimm, TheNormalisationIsPerChannel) {
  const TestFolder other;
  train_run(TinyRun({"model.channels=3", "train.steps=1"}), other / "run");
  const auto config = nlohmann::json::parse(read_bytes(other / "run/export/config.json"));
  EXPECT_EQ(config["pretrained_cfg"]["mean"].size(), 3u) << config;
  EXPECT_EQ(config["pretrained_cfg"]["std"].size(), 3u);
}

TEST_F(ExportTimm, AFolderThatExistsIsRefusedOrReplacedAsAsked) {
  const LoadedModel last = load_model(run(), "last"), average = load_model(run(), "ema");
  export_timm(last, *root_ / "model", false);
  const std::string before = read_bytes(*root_ / "model/model.safetensors");
  expect_error<RunFolderError>([&] { export_timm(average, *root_ / "model", false); },
                               {"model", "--overwrite"});
  EXPECT_EQ(read_bytes(*root_ / "model/model.safetensors"), before);
  export_timm(average, *root_ / "model", true);
  EXPECT_TRUE(at::equal(logits(*load_model(*root_ / "model", "last").model), logits(*average.model)));
  EXPECT_FALSE(fs::exists(*root_ / "model.old"));
}

TEST_F(ExportTimm, AFolderOfSomethingElseIsLeftAlone) {
  fs::create_directories(*root_ / "photos");
  write_bytes(*root_ / "photos/one.jpg", "x");
  expect_error<RunFolderError>([&] { export_timm(load_model(run(), "last"), *root_ / "photos", true); },
                               {"photos"});
  EXPECT_EQ(read_bytes(*root_ / "photos/one.jpg"), "x");
}

TEST_F(ExportTimm, AModelThatDoesNotReadBackTheSameLeavesNoFolder) {
  const LoadedModel source = load_model(run(), "last");
  {
    const at::NoGradGuard no_grad;
    // Finite weights whose logits are inf - inf, and NaN equals nothing.
    for (const char* name : {"norm.weight", "head.weight"})
      source.model->named_parameters()[name].fill_(std::numeric_limits<float>::max());
  }
  expect_error<VerificationError>([&] { export_timm(source, *root_ / "sick", false); }, {"sick", "logits"});
  EXPECT_FALSE(fs::exists(*root_ / "sick"));
  EXPECT_FALSE(fs::exists(*root_ / "sick.tmp"));
}

}  // namespace
}  // namespace exfusion
