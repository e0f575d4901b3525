#include "train/checkpoint.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "io/files.h"
#include "tiny_run.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;

CheckpointInfo info_of(const TinyRun& run) {
  CheckpointInfo info;
  info.epoch = run.state.step / run.per_epoch;
  info.samples = run.state.step * run.config.train.global_batch;
  info.threads = 2;
  info.micro_batch = run.config.train.micro_batch;
  info.precision = run.config.train.precision;
  info.recipe = run.resolved;
  info.data_checksum = run.data.checksum;
  info.best_by = "test";
  info.exfusion = "0.0.7";
  info.libtorch = "2.0.0";
  return info;
}

std::vector<std::string> kinds() {
  return {"none",
          "{experts: 3, weights: static}",
          "{experts: 3, weights: learned}",
          "{experts: 2, weights: learned, normalize: none, layers: [1]}",
          "{experts: 3, weights: memory, momentum: 0.8, router_std: 0.5}",
          "{experts: 3, weights: memory, forward: memory, dirichlet: 2.0, layers: last:1}",
          "{experts: 2, weights: static, expert_dropout: 0.5}",
          "{experts: 3, weights: static, materialize: false}",
          "{experts: 3, weights: learned, state: shared_moments, lr: 0.1}",
          "{experts: 2, weights: memory, router_std: 0.5, state: shared_moments}"};
}

TEST(Checkpoint, RestoresEveryBitAndTheStepsThatFollow) {
  for (const std::string& fusion : kinds()) {
    const TestFolder folder;
    const std::vector<std::string> sets = {"fusion=" + fusion, "train.ema=0.9", "model.drop_path=0.2"};
    TinyRun run(sets);
    run.steps(3);
    Batch sick = run.batch(3);
    sick.images.fill_(std::numeric_limits<float>::quiet_NaN());
    run.step(sick);
    save_checkpoint(folder.path(), run.state, info_of(run));

    TinyRun restored(sets);
    load_checkpoint(folder / "step-00000004", restored.state);
    expect_equal_bits(snapshot(restored.state), snapshot(run.state));
    EXPECT_EQ(restored.state.step, 4);
    EXPECT_EQ(restored.state.updates, 3);
    EXPECT_EQ(restored.state.skipped, 1);
    EXPECT_EQ(restored.state.skipped_in_row, 1);
    for (std::size_t i = 0; i < run.state.banks.size(); ++i)
      EXPECT_EQ(restored.state.banks[i].a(), run.state.banks[i].a());
    run.steps(3);
    restored.steps(3);
    expect_equal_bits(snapshot(restored.state), snapshot(run.state));
  }
}

// These two take the global batch in one piece.
TEST(Checkpoint, RestoresWeightsThatDependOnTheInput) {
  for (const std::string forward : {"blend", "routed"}) {
    const TestFolder folder;
    const std::vector<std::string> sets = {"fusion={experts: 3, weights: memory, forward: " + forward +
                                               ", router_std: 0.5, expert_dropout: 0.3}",
                                           "train.micro_batch=32"};
    TinyRun run(sets), restored(sets);
    run.steps(3);
    save_checkpoint(folder.path(), run.state, info_of(run));
    load_checkpoint(folder / "step-00000003", restored.state);
    run.steps(3);
    restored.steps(3);
    expect_equal_bits(snapshot(restored.state), snapshot(run.state));
  }
}

TEST(Checkpoint, HoldsTheFilesThatTheRecipeNeeds) {
  const TestFolder folder;
  const TinyRun dense;
  save_checkpoint(folder / "dense", dense.state, info_of(dense));
  EXPECT_FALSE(fs::exists(folder / "dense/step-00000000/experts.safetensors"));
  EXPECT_FALSE(fs::exists(folder / "dense/step-00000000/ema.safetensors"));
  auto sets = kLearned;
  sets.push_back("train.ema=0.9");
  const TinyRun fused(sets);
  save_checkpoint(folder / "fused", fused.state, info_of(fused));
  const fs::path checkpoint = folder / "fused/step-00000000";
  const SafetensorsFile experts((checkpoint / "experts.safetensors").string());
  EXPECT_EQ(experts.tensors().at("blocks.1.mlp.fc1.weight").shape, (std::vector<std::int64_t>{3, 64, 16}));
  EXPECT_EQ(experts.tensors().at("blocks.1.mlp.a").shape, (std::vector<std::int64_t>{3}));
  const SafetensorsFile model((checkpoint / "model.safetensors").string());
  EXPECT_EQ(model.tensors().size(), fused.state.model->named_parameters().size());
  EXPECT_TRUE(at::equal(model.read("blocks.1.mlp.fc1.weight"), fused.parameter("blocks.1.mlp.fc1.weight")));
}

TEST(Checkpoint, StateJsonSaysWhatWasPutIn) {
  const TestFolder folder;
  TinyRun run(kLearned);
  run.steps(2);
  CheckpointInfo info = info_of(run);
  info.test_accuracy = 0.5;
  info.test_accuracy_fp32 = 0.25;
  info.best_accuracy = 0.75;
  info.best_step = 1;
  info.world = 4;
  info.reduction = "deterministic";
  save_checkpoint(folder.path(), run.state, info);
  const CheckpointInfo found = read_checkpoint(folder / "step-00000002");
  EXPECT_EQ(found.step, 2);
  EXPECT_EQ(found.updates, 2);
  EXPECT_EQ(found.samples, 64);
  EXPECT_EQ(found.threads, 2);
  EXPECT_EQ(found.world, 4);
  EXPECT_EQ(found.reduction, "deterministic");
  EXPECT_EQ(found.micro_batch, 16);
  EXPECT_EQ(found.precision, "fp32");
  EXPECT_EQ(found.recipe, run.resolved);
  EXPECT_EQ(found.recipe_crc32, text_crc32(run.resolved));
  EXPECT_EQ(found.data_checksum, run.data.checksum);
  EXPECT_EQ(found.test_accuracy, 0.5);
  EXPECT_EQ(found.test_accuracy_fp32, 0.25);
  EXPECT_EQ(found.ema_accuracy, std::nullopt);
  EXPECT_EQ(found.best_by, "test");
  EXPECT_EQ(found.best_accuracy, 0.75);
  EXPECT_EQ(found.best_step, 1);
  EXPECT_EQ(found.exfusion, "0.0.7");
  EXPECT_EQ(found.libtorch, "2.0.0");
}

// Checkpoints of the steps 1 .. count.
TinyRun save_each_step(const fs::path& folder, int count) {
  TinyRun run(kLearned);
  for (int i = 0; i < count; ++i) {
    run.steps(1);
    save_checkpoint(folder, run.state, info_of(run));
  }
  return run;
}

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

TEST(Checkpoint, LatestAndBestPointAtTheirCheckpoints) {
  const TestFolder folder;
  save_each_step(folder.path(), 2);
  link_checkpoint(folder.path(), "best", 1);
  EXPECT_EQ(fs::read_symlink(folder / "latest"), "step-00000002");
  EXPECT_EQ(fs::read_symlink(folder / "best"), "step-00000001");
  link_checkpoint(folder.path(), "best", 2);
  EXPECT_EQ(fs::read_symlink(folder / "best"), "step-00000002");
  EXPECT_EQ(read_checkpoint(folder / "best").step, 2);
}

TEST(Checkpoint, PruningKeepsTheNewestAndTheBest) {
  const TestFolder folder;
  save_each_step(folder.path(), 5);
  link_checkpoint(folder.path(), "best", 2);
  prune_checkpoints(folder.path(), 2);
  EXPECT_EQ(names_in(folder.path()),
            (std::vector<std::string>{"best", "latest", "step-00000002", "step-00000004", "step-00000005"}));
  prune_checkpoints(folder.path(), 1'000'000);
  EXPECT_EQ(names_in(folder.path()).size(), 5u);
  link_checkpoint(folder.path(), "best", 5);
  for (const char* killed : {"step-00000003.tmp", "step-00000001.pruned"})
    fs::create_directories(folder / killed);
  prune_checkpoints(folder.path(), 1);
  EXPECT_EQ(names_in(folder.path()), (std::vector<std::string>{"best", "latest", "step-00000005"}));
  EXPECT_NO_THROW(read_checkpoint(folder / "latest"));
}

TEST(Checkpoint, SavingAStepAgainReplacesIt) {
  const TestFolder folder;
  TinyRun run = save_each_step(folder.path(), 1);
  write_bytes(folder / "step-00000001/model.safetensors", "damaged");
  save_checkpoint(folder.path(), run.state, info_of(run));
  EXPECT_NO_THROW(read_checkpoint(folder / "step-00000001"));
  EXPECT_EQ(names_in(folder.path()), (std::vector<std::string>{"latest", "step-00000001"}));
}

TEST(NewestCheckpoint, FallsBackToTheNewestThatIsWhole) {
  const TestFolder folder;
  save_each_step(folder.path(), 3);
  fs::create_directories(folder / "step-00000009.tmp");  // a write that was interrupted
  EXPECT_EQ(newest_checkpoint(folder.path()).value().filename(), "step-00000003");
  std::string bytes = read_bytes(folder / "step-00000003/optimizer.safetensors");
  bytes[bytes.size() / 2] = static_cast<char>(~bytes[bytes.size() / 2]);
  write_bytes(folder / "step-00000003/optimizer.safetensors", bytes);
  EXPECT_EQ(newest_checkpoint(folder.path()).value().filename(), "step-00000002");
  fs::remove(folder / "step-00000002/experts.safetensors");
  EXPECT_EQ(newest_checkpoint(folder.path()).value().filename(), "step-00000001");
  write_bytes(folder / "step-00000001/state.json", "{");
  expect_error<CheckpointError>([&] { newest_checkpoint(folder.path()); },
                                {folder.path().string(), "can be used"});
  EXPECT_FALSE(newest_checkpoint(folder / "nothing").has_value());
}

}  // namespace
}  // namespace exfusion
