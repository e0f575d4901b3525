#include "train/loop.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "finished_run.h"
#include "io/metrics_reader.h"
#include "train/checkpoint.h"
#include "train/evaluation.h"
#include "train/plan.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> finished_run_with(const std::string& more) {
  auto sets = finished_run_sets();
  sets.push_back(more);
  return sets;
}

// Everything but the times is the same: every file of the last checkpoint, and the export.
void expect_same_end(const fs::path& found, const fs::path& expected) {
  for (const char* file :
       {"model.safetensors", "experts.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json"})
    EXPECT_TRUE(read_bytes(found / "checkpoints/latest" / file) ==
                read_bytes(expected / "checkpoints/latest" / file))
        << file;
  EXPECT_TRUE(read_bytes(found / "export/model.safetensors") ==
              read_bytes(expected / "export/model.safetensors"));
  EXPECT_EQ(fs::read_symlink(found / "checkpoints/best"), fs::read_symlink(expected / "checkpoints/best"));
}

class RunTraining : public FinishedRun {};

TEST_F(RunTraining, LeavesAWholeRunFolder) {
  EXPECT_EQ(outcome_.step, 6);
  EXPECT_EQ(outcome_.skipped, 0);
  EXPECT_EQ(outcome_.best_by, "test");
  EXPECT_GE(outcome_.best_accuracy, outcome_.accuracy);
  EXPECT_EQ(outcome_.accuracy, outcome_.accuracy_fp32);
  for (const char* file : {"recipe.yaml", "train.log", "metrics.h5", "checkpoints/latest/state.json",
                           "checkpoints/best/state.json", "export/model.safetensors", "export/config.json"})
    EXPECT_TRUE(fs::exists(run() / file)) << file;
  EXPECT_TRUE(std::any_of(fs::directory_iterator(run()), fs::directory_iterator(), [](const auto& entry) {
    return entry.path().filename().string().starts_with("events.out.tfevents.");
  }));
}

// The run as it was when the process died after the checkpoint of step `kept`.
void cut_after(const fs::path& from, const fs::path& to, std::int64_t kept) {
  fs::copy(from, to, fs::copy_options::recursive | fs::copy_options::copy_symlinks);
  fs::remove_all(to / "export");
  for (std::int64_t step = kept + 1; step <= 6; ++step)
    fs::remove_all(to / "checkpoints" / checkpoint_name(step));
  for (const char* link : {"latest", "best"}) fs::remove(to / "checkpoints" / link);
}

TEST_F(RunTraining, ResumedItEndsInTheSameBits) {
  for (const std::int64_t kept : {1, 4}) {
    const fs::path path = *root_ / ("cut" + std::to_string(kept));
    cut_after(run(), path, kept);
    if (kept >= 3)
      link_checkpoint(path / "checkpoints", "best",
                      read_checkpoint(path / "checkpoints" / checkpoint_name(kept)).best_step);
    const RunOutcome outcome = resume_run(TinyRun(finished_run_sets()), path);
    EXPECT_EQ(outcome.accuracy, outcome_.accuracy);
    EXPECT_EQ(outcome.best_accuracy, outcome_.best_accuracy);
    expect_same_end(path, run());
  }
}

// At this learning rate no evaluation beats the first: the best is the one whose link is missing.
TEST_F(RunTraining, KilledBeforeTheLinksWereMadeItStillFindsItsBest) {
  const TinyRun slow(finished_run_with("optim.lr=1e-7"));
  train_run(slow, *root_ / "slow");
  ASSERT_EQ(read_checkpoint(*root_ / "slow/checkpoints/latest").best_step, 3);
  cut_after(*root_ / "slow", *root_ / "unlinked", 3);
  resume_run(slow, *root_ / "unlinked");
  expect_same_end(*root_ / "unlinked", *root_ / "slow");
}

TEST_F(RunTraining, KilledInItsFirstCheckpointItStartsAgain) {
  cut_after(run(), *root_ / "early", 0);
  fs::create_directories(*root_ / "early/checkpoints/step-00000001.tmp");
  write_bytes(*root_ / "early/checkpoints/step-00000001.tmp/model.safetensors", "half");
  resume_run(TinyRun(finished_run_sets()), *root_ / "early");
  expect_same_end(*root_ / "early", run());
}

TEST_F(RunTraining, ResumedWithADamagedNewestCheckpointItEndsInTheSameBits) {
  cut_after(run(), *root_ / "damaged", 5);
  link_checkpoint(*root_ / "damaged/checkpoints", "best",
                  read_checkpoint(checkpoint("step-00000005")).best_step);
  fs::resize_file(*root_ / "damaged/checkpoints/step-00000005/experts.safetensors", 1000);
  resume_run(TinyRun(finished_run_sets()), *root_ / "damaged");
  expect_same_end(*root_ / "damaged", run());
}

TEST_F(RunTraining, AFinishedRunSaysSoAndChangesNothing) {
  fs::copy(run(), *root_ / "finished", fs::copy_options::recursive | fs::copy_options::copy_symlinks);
  const RunOutcome outcome = resume_run(TinyRun(finished_run_sets()), *root_ / "finished");
  EXPECT_TRUE(outcome.already_finished);
  EXPECT_EQ(outcome.step, 6);
  EXPECT_EQ(outcome.accuracy, outcome_.accuracy);
  EXPECT_EQ(read_bytes(*root_ / "finished/metrics.h5"), read_bytes(run() / "metrics.h5"));
}

TEST_F(RunTraining, AFinishedRunCanBeMadeLonger) {
  fs::copy(run(), *root_ / "longer", fs::copy_options::recursive | fs::copy_options::copy_symlinks);
  EXPECT_EQ(resume_run(TinyRun(finished_run_with("train.steps=8")), *root_ / "longer").step, 8);
  train_run(TinyRun(finished_run_with("train.steps=8")), *root_ / "straight");
  expect_same_end(*root_ / "longer", *root_ / "straight");
}

TEST_F(RunTraining, ResumingNeedsTheSameDataAndALengthNotYetPassed) {
  fs::copy(run(), *root_ / "other", fs::copy_options::recursive | fs::copy_options::copy_symlinks);
  expect_error<CheckpointError>(
      [] { resume_run(TinyRun(finished_run_with("data.test_samples=38")), *root_ / "other"); },
      {"other", "checksum"});
  expect_error<CheckpointError>(
      [] { resume_run(TinyRun(finished_run_with("train.steps=5")), *root_ / "other"); },
      {"other", "step 6", "5 steps"});
}

// A learning rate that sends the weights beyond fp32 at once.
double last_of(const fs::path& run, const std::string& column, std::uint64_t width = 0) {
  return MetricsReader((run / "metrics.h5").string()).column(column, width).value().back();
}

// With forward: memory and no noise training runs on the collapsed model: bit for bit, not only by decree.
TEST(CollapseGap, IsZeroForMemoryAndMeasuredForRouted) {
  log_set_quiet(true);
  const TestFolder folder;
  for (const std::string forward : {"memory", "routed"}) {
    const std::vector<std::string> sets = {
        "fusion={experts: 3, weights: memory, router_std: 3, forward: " + forward + "}",
        "train.micro_batch=32"};
    TinyRun run(sets);
    run.steps(6);
    const Dataset& test = *run.data.test;
    const Evaluation collapsed = evaluate(*run.state.model, test, run.config.data, 4, "fp32");
    for (ExpertBank& bank : run.state.banks) bank.begin_preview(run.state.step);
    const Evaluation training = evaluate(*run.state.model, test, run.config.data, 4, "fp32");
    for (ExpertBank& bank : run.state.banks) bank.end_preview();
    if (forward == "memory") {
      EXPECT_EQ(collapsed.loss, training.loss);
    } else {
      EXPECT_NE(collapsed.loss, training.loss);
    }
    train_run(TinyRun(sets), folder / forward);
    EXPECT_EQ(last_of(folder / forward, "gap/loss"), collapsed.loss - training.loss);
    EXPECT_EQ(last_of(folder / forward, "gap/accuracy"), collapsed.accuracy - training.accuracy);
  }
}

TEST(ExpertMetrics, AreRecordedAtTheirCadence) {
  log_set_quiet(true);
  const TestFolder folder;
  train_run(TinyRun({"fusion={experts: 3, weights: memory}", "train.eval_every_steps=3"}), folder / "run");
  const MetricsReader metrics((folder / "run/metrics.h5").string());
  EXPECT_EQ(metrics.column("fusion/entropy_a", 2).value().size(), 6u * 2u);
  EXPECT_EQ(metrics.column("experts/update_participation", 2).value().size(), 2u * 2u);
  EXPECT_EQ(metrics.column("cost/state_bytes").value().size(), 2u);
  EXPECT_NEAR(last_of(folder / "run", "experts/difference_ratio", 2),
              last_of(folder / "run", "experts/difference_predicted"), 0.01);
}

TEST_F(RunTraining, StopsAfterMaxSkippedStepsInARow) {
  const TinyRun run(
      {"optim.lr=1000", "optim.weight_decay=1000", "train={steps: 60, global_batch: 32, max_skipped: 3}"});
  const RunFolder folder = RunFolder::create(*root_ / "sick", false);
  expect_error<NonFiniteError>([&] { run_training(run.config, run.resolved, folder, false); },
                               {"3 steps in a row", "train.max_skipped"});
}

TEST(PlanText, DescribesTheRunWithoutTrainingIt) {
  const std::string text = plan_text(TinyRun(kLearned).config);
  for (const char* part : {"tiny", "3 experts", "learned", "synthetic", "96 training", "37 test",
                           "6 steps of 32", "MFLOP", "images/s", "peak memory"})
    EXPECT_NE(text.find(part), std::string::npos) << part << " is not in\n" << text;
}

}  // namespace
}  // namespace exfusion
