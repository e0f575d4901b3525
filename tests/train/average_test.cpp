#include "train/average.h"

#include <gtest/gtest.h>

#include "finished_run.h"
#include "train/checkpoint.h"
#include "train/evaluation.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;

// The run of 6 steps with a checkpoint each, with images held out.
class Average : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    log_set_quiet(true);
    root_ = new TestFolder;
    std::vector<std::string> sets = finished_run_sets();
    sets.insert(sets.end(), {"data.validation=24", "optim.lr=0.003"});
    train_run(TinyRun(sets), run());
  }
  static void TearDownTestSuite() {
    delete root_;
    root_ = nullptr;
  }
  static fs::path run() { return *root_ / "run"; }
  static fs::path checkpoint(std::int64_t step) { return run() / "checkpoints" / checkpoint_name(step); }
  // The mean over these steps in double precision, rounded once.
  static at::Tensor mean_of(const std::string& name, const std::vector<std::int64_t>& steps) {
    at::Tensor sum;
    for (const std::int64_t step : steps) {
      const SafetensorsFile file((checkpoint(step) / "model.safetensors").string());
      const at::Tensor value = file.read(name).to(at::kDouble);
      sum = sum.defined() ? sum + value : value;
    }
    return (sum / static_cast<double>(steps.size())).to(at::kFloat);
  }
  static void expect_mean(const Soup& soup, const std::vector<std::int64_t>& steps) {
    for (const auto& item : soup.model.model->named_parameters())
      EXPECT_TRUE(at::equal(item.value().detach(), mean_of(item.key(), steps))) << item.key();
  }
  static std::vector<std::int64_t> kept_steps(const Soup& soup) {
    std::vector<std::int64_t> steps;
    for (const SoupMember& member : soup.members) {
      if (member.kept) steps.push_back(member.step);
    }
    return steps;
  }

  static inline TestFolder* root_ = nullptr;
};

TEST_F(Average, OfOneIsTheLastCheckpointBitForBit) {
  const Soup soup = average_checkpoints(run(), 1, false);
  expect_mean(soup, {6});
  EXPECT_EQ(soup.model.step, 6);
  EXPECT_EQ(soup.model.what, "last");
  EXPECT_TRUE(soup.model.test_accuracy);
}

TEST_F(Average, IsTheMeanOfTheLastCheckpointsRoundedOnce) {
  const Soup soup = average_checkpoints(run(), 4, false);
  expect_mean(soup, {3, 4, 5, 6});
  EXPECT_EQ(kept_steps(soup), (std::vector<std::int64_t>{3, 4, 5, 6}));
  EXPECT_FALSE(soup.validation_accuracy);
  EXPECT_NE(soup.model.what.find("average of 4"), std::string::npos);
  EXPECT_FALSE(soup.model.test_accuracy);  // that of the last checkpoint would be another model's
}

TEST_F(Average, OfMoreThanThereAreSaysHowManyThereAre) {
  expect_error<CheckpointError>([] { average_checkpoints(run(), 7, false); },
                                {"has 6 checkpoint", "7", "checkpoint.keep"});
  expect_error<CheckpointError>([] { average_checkpoints(checkpoint(6), 2, false); }, {"not a run"});
  expect_error<CheckpointError>([] { average_checkpoints(*root_ / "none", 2, false); }, {"none"});
}

TEST_F(Average, PassesOverDamagedCheckpoints) {
  fs::copy(run(), *root_ / "damaged", fs::copy_options::recursive | fs::copy_options::copy_symlinks);
  fs::remove(*root_ / "damaged/checkpoints/step-00000005/model.safetensors");
  expect_mean(average_checkpoints(*root_ / "damaged", 3, false), {3, 4, 6});
  expect_error<CheckpointError>([] { average_checkpoints(*root_ / "damaged", 6, false); }, {"has 5"});
}

// The recipe of Wortsman et al. 2022, section 2, on the same held-out images.
TEST_F(Average, GreedyKeepsWhatDoesNotLowerTheAccuracyOnTheHeldOutImages) {
  const Soup soup = average_checkpoints(run(), 6, true);
  ASSERT_EQ(soup.members.size(), 6u);
  for (std::size_t i = 1; i < 6; ++i)
    EXPECT_GE(soup.members[i - 1].validation_accuracy, soup.members[i].validation_accuracy);

  const LoadedModel probe = load_model(run(), "last");
  const Datasets data = make_datasets(probe.run->data, probe.run->seed, probe.config.image_shape());
  const auto accuracy_of = [&](const std::vector<std::int64_t>& steps) {
    const at::NoGradGuard no_grad;
    for (const auto& item : probe.model->named_parameters()) item.value().copy_(mean_of(item.key(), steps));
    return evaluate(*probe.model, *data.validation, probe.run->data, 4, "fp32").accuracy;
  };
  std::vector<std::int64_t> expected;
  double best = -1.0;
  for (const SoupMember& member : soup.members) {
    EXPECT_EQ(*member.validation_accuracy, accuracy_of({member.step}));
    std::vector<std::int64_t> candidate = expected;
    candidate.push_back(member.step);
    const double found = accuracy_of(candidate);
    EXPECT_EQ(member.kept, found >= best) << member.step;
    if (found < best) continue;
    best = found;
    expected = candidate;
  }
  EXPECT_EQ(kept_steps(soup), expected);
  EXPECT_TRUE(expected.size() > 1 && expected.size() < 6) << expected.size();  // both cases occur
  EXPECT_EQ(soup.validation_accuracy, best);
  EXPECT_GE(best, *soup.members[0].validation_accuracy);
  expect_mean(soup, expected);
}

TEST_F(Average, GreedyWithoutHeldOutImagesIsRefused) {
  const TestFolder other;
  train_run(TinyRun({"train.steps=2", "checkpoint.every_steps=1"}), other / "run");
  expect_error<CheckpointError>([&] { average_checkpoints(other / "run", 2, true); },
                                {"data.validation", "test set"});
}

}  // namespace
}  // namespace exfusion
