// Runs whose FFNs hold their experts (`model.ffn`): training, resuming, exporting, reading back.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "finished_run.h"
#include "train/checkpoint.h"
#include "train/export.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;

constexpr const char* kTopk =
    "model.ffn={name: topk, experts: 4, capacity_factor: 1.0, z_loss: 0.001, bias_balance: 0.01}";
constexpr const char* kSmear = "model.ffn={name: smear, experts: 3, layers: last:1}";
constexpr const char* kEwa = "model.ffn={name: ewa, experts: 3, share_rate: 0.2}";

at::Tensor logits(Model& model) {
  const at::NoGradGuard no_grad;
  return model.forward(at::linspace(-1, 1, 3 * 64).view({3, 1, 8, 8}), {});
}

// What a checkpoint has to hold.
std::map<std::string, at::Tensor> everything(const TrainingState& state) {
  auto copies = snapshot(state);
  for (const auto& [name, tensor] : model_tensors(*state.model)) copies["model/" + name] = tensor.clone();
  return copies;
}

// A model in evaluation mode whose experts differ.
LoadedModel untrained(const char* ffn) {
  LoadedModel loaded;
  const TinyRun run({ffn});
  loaded.config = run.config.model;
  loaded.model = run.state.model;
  loaded.model->eval();
  loaded.mean = loaded.std = {0.5};
  loaded.origin = "here";
  return loaded;
}

class ExpertRuns : public testing::Test {
 protected:
  void SetUp() override { log_set_quiet(true); }
  TestFolder root_;
};

TEST_F(ExpertRuns, AMixtureTrainsAndItsExportKeepsItsExperts) {
  for (const char* ffn : {kTopk, kSmear}) {
    const fs::path run = root_ / (ffn == kTopk ? "topk" : "smear");
    const RunOutcome outcome = train_run(TinyRun({ffn, "train.ema=0.8"}), run);
    const LoadedModel trained = load_model(run, "last"), exported = load_model(run / "export", "last");
    EXPECT_FALSE(trained.model->is_training());
    EXPECT_FALSE(exported.model->is_training());
    EXPECT_TRUE(at::equal(logits(*exported.model), logits(*trained.model))) << ffn;
    EXPECT_EQ(exported.config.vit.ffn.name, trained.config.vit.ffn.name);
    EXPECT_EQ(trained.test_accuracy, outcome.accuracy_fp32);
    const auto config = nlohmann::json::parse(read_bytes(run / "export/config.json"));
    EXPECT_EQ(config["architecture"], "exfusion_vit");
    EXPECT_EQ(config["exfusion"]["ffn"]["name"], trained.config.vit.ffn.name);
    const LoadedModel average = load_model(run, "ema");
    EXPECT_FALSE(at::equal(logits(*average.model), logits(*trained.model)));
  }
}

TEST_F(ExpertRuns, AveragedExpertsTrainAndTheirExportIsDense) {
  const RunOutcome outcome = train_run(TinyRun({kEwa}), root_ / "run");
  const LoadedModel trained = load_model(root_ / "run", "last"),
                    dense = load_model(root_ / "run/export", "last");
  EXPECT_EQ(trained.config.vit.ffn.name, "ewa");
  EXPECT_EQ(dense.config.vit.ffn.name, "dense");
  EXPECT_TRUE(at::equal(logits(*dense.model), logits(*trained.model)));
  EXPECT_EQ(trained.test_accuracy, outcome.accuracy_fp32);
  const SafetensorsFile file((root_ / "run/export/model.safetensors").string());
  EXPECT_EQ(file.tensors().at("blocks.0.mlp.fc1.weight").shape, (std::vector<std::int64_t>{64, 16}));
  EXPECT_EQ(file.tensors().size(), TinyRun().state.model->named_parameters().size());
  EXPECT_NE(read_bytes(root_ / "run/export/config.json").find("vit_base_patch16_224"), std::string::npos);
}

TEST_F(ExpertRuns, AResumedRunIsTheUninterruptedOneBitForBit) {
  for (const char* ffn : {kTopk, kSmear, kEwa}) {
    TinyRun whole({ffn}), first({ffn}), second({ffn});
    whole.steps(6);
    first.steps(3);
    const fs::path checkpoints = root_ / std::string(ffn == kTopk ? "topk" : ffn == kSmear ? "smear" : "ewa");
    fs::create_directories(checkpoints);
    CheckpointInfo info;
    info.recipe = first.resolved;
    save_checkpoint(checkpoints, first.state, info);
    load_checkpoint(checkpoints / "step-00000003", second.state);
    expect_equal_bits(everything(second.state), everything(first.state));
    second.steps(3);
    expect_equal_bits(everything(second.state), everything(whole.state));
  }
}

TEST_F(ExpertRuns, SelectionBiasesMoveAndAreInTheCheckpoint) {
  TinyRun run({kTopk});
  run.steps(2);
  const at::Tensor bias = run.state.model->named_buffers()["blocks.1.mlp.selection_bias"];
  EXPECT_GT(bias.abs().max().item<double>(), 0.0);
  EXPECT_LE(bias.abs().max().item<double>(), 0.02001);  // two updates of 0.01
  fs::create_directories(root_ / "checkpoints");
  CheckpointInfo info;
  info.recipe = run.resolved;
  save_checkpoint(root_ / "checkpoints", run.state, info);
  const LoadedModel loaded = load_model(root_ / "checkpoints/step-00000002", "last");
  EXPECT_TRUE(at::equal(loaded.model->named_buffers()["blocks.1.mlp.selection_bias"], bias));
}

TEST_F(ExpertRuns, AStepOfEachKindLowersTheLossOfItsBatch) {
  for (const char* ffn : {kTopk, kSmear, kEwa}) {
    TinyRun run({ffn, "train.precision=bf16"});
    const Batch batch = run.batch(0);
    const double before = run.step(batch).loss;
    for (int i = 0; i < 20; ++i) run.step(batch);
    EXPECT_LT(run.step(batch).loss, 0.7 * before) << ffn;
  }
}

TEST_F(ExpertRuns, AMixtureHasNoFormForTimm) {
  for (const char* ffn : {kTopk, kSmear})
    expect_error<CheckpointError>([&] { export_timm(untrained(ffn), root_ / "out", false); },
                                  {"here", "no dense model equals", "--to moe"});
  EXPECT_FALSE(fs::exists(root_ / "out"));
}

TEST_F(ExpertRuns, WhatCollapsesIsNotExportedWithItsExperts) {
  for (const char* ffn : {kEwa, "model.ffn=none"})
    expect_error<CheckpointError>([&] { export_moe(untrained(ffn), root_ / "out", false); },
                                  {"here", "dense form", "--to timm"});
}

TEST_F(ExpertRuns, TheCardOfAMixtureSaysWhatItIs) {
  export_model(untrained(kTopk), root_ / "moe", false);
  const std::string card = read_bytes(root_ / "moe/README.md");
  EXPECT_NE(card.find("4 experts each (topk)"), std::string::npos) << card;
  EXPECT_EQ(card.find("timm.create_model"), std::string::npos) << card;
  export_model(untrained(kEwa), root_ / "dense", false);
  EXPECT_NE(read_bytes(root_ / "dense/README.md").find("timm.create_model"), std::string::npos);
}

TEST_F(ExpertRuns, AFileThatDoesNotHoldTheClaimedExpertsIsRefusedBeforeTheyAreBuilt) {
  export_moe(untrained(kTopk), root_ / "moe", false);
  const std::string config = read_bytes(root_ / "moe/config.json");
  const auto refused = [&](const std::string& from, const std::string& to, const std::string& fragment) {
    std::string changed = config;
    changed.replace(changed.find(from), from.size(), to);
    write_bytes(root_ / "moe/config.json", changed);
    expect_error<FormatError>([&] { load_model(root_ / "moe", "last"); }, {"moe", fragment});
  };
  refused("\"experts\": 4", "\"experts\": 200", "holds");
  refused("\"bias_balance\": 0.01", "\"bias_balance\": 0", "holds");
  refused("\"name\": \"topk\"", "\"name\": \"smear\"", "belongs to name: topk");
  refused("\"exfusion\"", "\"unknown\"", "holds");
}

}  // namespace
}  // namespace exfusion
