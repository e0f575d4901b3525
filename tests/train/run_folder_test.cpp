#include "train/run_folder.h"

#include <gtest/gtest.h>

#include "tiny_run.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;

TEST(RunFolder, IsMadeWithItsParents) {
  const TestFolder root;
  const RunFolder folder = RunFolder::create(root / "runs/a/b", false);
  EXPECT_TRUE(fs::is_directory(folder.checkpoints()));
  EXPECT_EQ(folder.path(), root / "runs/a/b");
}

TEST(RunFolder, OneThatExistsIsRefusedWithBothWaysOut) {
  const TestFolder root;
  fs::create_directories(root / "run");
  write_bytes(root / "run/recipe.yaml", "name: r\n");
  expect_error<RunFolderError>([&] { RunFolder::create(root / "run", false); },
                               {(root / "run").string(), "--resume", "--overwrite"});
  EXPECT_EQ(read_bytes(root / "run/recipe.yaml"), "name: r\n");
}

TEST(RunFolder, OverwriteStartsFromNothing) {
  const TestFolder root;
  RunFolder::create(root / "run", false).write_recipe("name: r\n", "00000000");
  write_bytes(root / "run/metrics.h5", "old");
  const RunFolder folder = RunFolder::create(root / "run", true);
  EXPECT_FALSE(fs::exists(folder.metrics()));
  EXPECT_FALSE(fs::exists(folder.recipe()));
  EXPECT_TRUE(fs::is_directory(folder.checkpoints()));
}

TEST(RunFolder, OverwriteLeavesWhatIsNoRunAlone) {
  const TestFolder root;
  fs::create_directories(root / "photos");
  write_bytes(root / "photos/one.jpg", "x");
  write_bytes(root / "file", "x");
  expect_error<RunFolderError>([&] { RunFolder::create(root / "photos", true); }, {"photos", "recipe.yaml"});
  expect_error<RunFolderError>([&] { RunFolder::create(root / "file", true); }, {"file"});
  EXPECT_EQ(read_bytes(root / "photos/one.jpg"), "x");
  EXPECT_EQ(read_bytes(root / "file"), "x");
}

// A run that stops before it has its data (a wrong data.root) has written no recipe yet.
TEST(RunFolder, OverwriteTakesARunThatEndedBeforeItsFirstStep) {
  const TestFolder root;
  RunFolder::create(root / "run", false);
  write_bytes(root / "run/train.log", "x");
  EXPECT_NO_THROW(RunFolder::create(root / "run", true));
}

TEST(RunFolder, IsUnusedUntilItHoldsSomethingOfARun) {
  const TestFolder root;
  EXPECT_FALSE(RunFolder::is_unused(root / "missing"));
  RunFolder::create(root / "run", false);
  for (const char* early : {"train.log", "train.rank-001.log", "recipe.yaml.tmp"}) {
    write_bytes(root / "run" / early, "x");
    EXPECT_TRUE(RunFolder::is_unused(root / "run")) << early;
  }
  for (const char* late : {"recipe.yaml", "metrics.h5", "checkpoints/step-00000002", "notes.txt"}) {
    write_bytes(root / "run" / late, "x");
    EXPECT_FALSE(RunFolder::is_unused(root / "run")) << late;
    fs::remove(root / "run" / late);
  }
}

TEST(RunFolder, BelongsToOneProcessAtATime) {
  const TestFolder root;
  {
    const RunFolder folder = RunFolder::create(root / "run", false);
    folder.write_recipe("name: r\n", "00000000");
    expect_error<RunFolderError>([&] { RunFolder::open(root / "run"); }, {"run", "another process"});
    expect_error<RunFolderError>([&] { RunFolder::create(root / "run", true); }, {"run", "another process"});
    EXPECT_TRUE(fs::exists(folder.recipe()));
  }
  EXPECT_EQ(RunFolder::open(root / "run").path(), root / "run");
}

TEST(RunFolder, AMovedFromFolderKeepsTheLockWithItsHeir) {
  const TestFolder root;
  RunFolder first = RunFolder::create(root / "run", false);
  first.write_recipe("name: r\n", "00000000");
  {
    const RunFolder heir = std::move(first);
    EXPECT_THROW(RunFolder::open(root / "run"), RunFolderError);
  }
  EXPECT_NO_THROW(RunFolder::open(root / "run"));
}

TEST(RunFolder, OnlyARunCanBeOpened) {
  const TestFolder root;
  fs::create_directories(root / "empty");
  expect_error<CheckpointError>([&] { RunFolder::open(root / "empty"); }, {"empty", "recipe.yaml"});
  expect_error<CheckpointError>([&] { RunFolder::open(root / "missing"); }, {"missing", "recipe.yaml"});
}

TEST(RunFolder, TheRecipeInItIsOneWithVersionsAndHashesAsComments) {
  const TestFolder root;
  const TinyRun run(kLearned);
  const RunFolder folder = RunFolder::create(root / "run", false);
  folder.write_recipe(run.resolved, "1234abcd");
  const std::string text = read_bytes(folder.recipe());
  EXPECT_TRUE(text.starts_with("# exfusion ")) << text;
  EXPECT_NE(text.find("1234abcd"), std::string::npos);
  Recipe again = Recipe::load(folder.recipe().string(), {});
  parse_run(again);
  EXPECT_EQ(again.resolved(), run.resolved);
}

TEST(RunFolder, OverwritingKeepsTheOldRunUntilTheNewOneHasStarted) {
  const TestFolder root;
  const std::filesystem::path path = root / "run", old = root / "run.old";
  RunFolder::create(path, false).write_recipe("name: first\n", "");
  RunFolder::create(path, true).withdraw();
  EXPECT_NE(read_bytes(path / "recipe.yaml").size(), 0u);
  EXPECT_FALSE(std::filesystem::exists(old));
  const RunFolder second = RunFolder::create(path, true);
  EXPECT_TRUE(std::filesystem::exists(old / "recipe.yaml"));
  EXPECT_FALSE(std::filesystem::exists(path / "recipe.yaml"));
  second.started();
  EXPECT_FALSE(std::filesystem::exists(old));
}

}  // namespace
}  // namespace exfusion
