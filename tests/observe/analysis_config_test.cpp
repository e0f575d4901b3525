#include "observe/analysis_config.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "core/recipe.h"

namespace exfusion {
namespace {

AnalysisConfig parse(const std::string& text) {
  Recipe recipe = Recipe::parse(text, "a.yaml");
  const AnalysisConfig config = AnalysisConfig::parse(recipe.root().child("analysis"));
  recipe.finish();
  return config;
}

std::vector<std::int64_t> due_steps(const AnalysisConfig& config) {
  std::vector<std::int64_t> steps;
  for (std::int64_t step = 1; step <= 20; ++step) {
    if (config.due(step, step % 6 == 0, step == 20)) steps.push_back(step);
  }
  return steps;
}

TEST(AnalysisConfig, IsOffUnlessGroupsAreNamed) {
  EXPECT_FALSE(parse("analysis: {}").on());
  EXPECT_FALSE(parse("analysis: {groups: none}").on());
  EXPECT_TRUE(due_steps(parse("analysis: {every: [3]}")).empty());
  const AnalysisConfig some = parse("analysis: {groups: [fused, lens]}");
  EXPECT_TRUE(some.wants("lens"));
  EXPECT_FALSE(some.wants("load"));
  EXPECT_EQ(parse("analysis: {groups: all}").groups, analysis_group_names());
}

TEST(AnalysisConfig, SaysWhichStepsAreDue) {
  EXPECT_EQ(due_steps(parse("analysis: {groups: all}")), (std::vector<std::int64_t>{1, 2, 4, 8, 16, 20}));
  EXPECT_EQ(due_steps(parse("analysis: {groups: all, every: checkpoint}")),
            (std::vector<std::int64_t>{6, 12, 18, 20}));
  EXPECT_EQ(due_steps(parse("analysis: {groups: all, every: [3, 7]}")), (std::vector<std::int64_t>{3, 7}));
}

TEST(AnalysisConfig, RefusesWhatItDoesNotKnow) {
  for (const char* wrong : {"{groups: [fused, heat]}", "{groups: [fused, fused]}", "{groups: []}",
                            "{groups: [fused, all]}", "{every: sometimes}", "{every: [4, 2]}", "{every: [0]}",
                            "{every: []}", "{every: [1, x]}", "{batches: 1}", "{batch: 0}"})
    EXPECT_THROW(parse(std::string("analysis: ") + wrong), RecipeError) << wrong;
}

}  // namespace
}  // namespace exfusion
