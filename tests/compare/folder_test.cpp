#include "compare/folder.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "support/test_folder.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;

ComparisonPlan small_plan() {
  ComparisonPlan plan;
  plan.resolved = "seed: 1\noptim:\n  lr: 0.001\n";
  plan.arms = parse_arms("dense,static");
  plan.seeds = 3;
  plan.steps = 50;
  plan.threads = 2;
  return plan;
}

class Folder : public testing::Test {
 protected:
  void make() {
    ComparisonPlan plan = small_plan();
    const ComparisonFolder made(path_, plan);
  }
  std::string refusal(ComparisonPlan plan) const {
    try {
      const ComparisonFolder folder(path_, plan);
    } catch (const BadInput& error) {
      return error.what();
    }
    return "";
  }
  TestFolder outer_;
  fs::path path_ = outer_ / "comparison";
};

TEST_F(Folder, TheSameComparisonGoesOn) {
  make();
  EXPECT_EQ(refusal(small_plan()), "");
}

TEST_F(Folder, AnEmptyFolderIsTaken) {
  fs::create_directory(path_);
  make();
  EXPECT_TRUE(fs::exists(path_ / "plan.json"));
}

TEST_F(Folder, MoreArmsAndSeedsMayComeAndWhatWasComparedStays) {
  make();
  ComparisonPlan plan = small_plan();
  plan.arms = parse_arms("dense,learned");
  plan.seeds = 2;
  plan.threads = 1;
  const ComparisonFolder folder(path_, plan);
  ASSERT_EQ(plan.arms.size(), 3u);
  EXPECT_EQ(plan.arms[2].name, "static");
  EXPECT_EQ(plan.seeds, 3);
  EXPECT_EQ(plan.threads, 2);  // step times of other runs could not be compared
}

TEST_F(Folder, StepsOnceMatchedStay) {
  ComparisonPlan plan = small_plan();
  {
    const ComparisonFolder folder(path_, plan);
    plan.matched["time"]["static"] = 47;
    folder.write_plan(plan);
  }
  ComparisonPlan again = small_plan();
  const ComparisonFolder folder(path_, again);
  EXPECT_EQ(again.matched.at("time").at("static"), 47);
}

TEST_F(Folder, AnotherRecipeIsRefusedWithTheLine) {
  make();
  ComparisonPlan plan = small_plan();
  plan.resolved = "seed: 1\noptim:\n  lr: 0.002\n";
  EXPECT_NE(refusal(plan).find("the recipe said '  lr: 0.001' and says '  lr: 0.002'"), std::string::npos);
  plan.resolved = "seed: 1\n";
  EXPECT_NE(refusal(plan).find("says '(nothing more)'"), std::string::npos);
}

TEST_F(Folder, AnotherTuningIsRefused) {
  make();
  ComparisonPlan plan = small_plan();
  plan.grid = parse_grid("optim.lr=1,2");
  EXPECT_NE(refusal(plan).find("--tune was none and is optim.lr=1,2"), std::string::npos);
  plan = small_plan();
  plan.tuning_seeds = 4;
  EXPECT_NE(refusal(plan).find("--tune-seeds was 0 and is 4"), std::string::npos);
}

TEST_F(Folder, AnotherMeaningOfAnArmIsRefused) {
  make();
  std::string text = read_bytes(path_ / "plan.json");
  text.replace(text.find("fusion.weights=static"), 21, "fusion.weights=uneven");
  write_bytes(path_ / "plan.json", text);
  EXPECT_NE(refusal(small_plan()).find("the arm static was"), std::string::npos);
}

TEST_F(Folder, AFolderOfSomethingElseIsLeftAlone) {
  fs::create_directory(path_);
  write_bytes(path_ / "thesis.tex", "x");
  EXPECT_NE(refusal(small_plan()).find("holds no comparison"), std::string::npos);
  EXPECT_FALSE(fs::exists(path_ / "plan.json"));
}

TEST_F(Folder, TwoComparisonsCannotShareIt) {
  ComparisonPlan plan = small_plan();
  const ComparisonFolder first(path_, plan);
  EXPECT_NE(refusal(small_plan()).find("still works here"), std::string::npos);
}

TEST_F(Folder, APlanThatIsNoneIsRefused) {
  for (const char* text : {"", "[]", "{}", "{\"recipe\": 3}", "\xff\xfe", "{\"recipe\": \"seed: 1\"}"}) {
    fs::create_directories(path_);
    write_bytes(path_ / "plan.json", text);
    EXPECT_NE(refusal(small_plan()), "") << text;
  }
}

}  // namespace
}  // namespace exfusion
