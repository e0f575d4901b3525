#include "optim/schedule.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"
#include "core/recipe.h"

namespace exfusion {
namespace {

ScheduleConfig schedule(const std::string& name, std::int64_t warmup_steps = 0, double final = 0.0) {
  ScheduleConfig config;
  config.name = name;
  config.warmup_steps = warmup_steps;
  config.final = final;
  return config;
}

ScheduleConfig parse_schedule(const std::string& text) {
  Recipe recipe = Recipe::parse(text, "test.yaml");
  const ScheduleConfig config = ScheduleConfig::parse(recipe.root());
  recipe.finish();
  return config;
}

std::string problem_of(const std::string& text) {
  try {
    parse_schedule(text);
  } catch (const RecipeError& error) {
    return error.what();
  }
  return "";
}

TEST(Schedule, WarmUpRisesLinearlyAndJoinsAtOne) {
  for (const std::string& name : schedule_names()) {
    const ScheduleConfig config = schedule(name, 4);
    for (int step = 0; step < 4; ++step)
      EXPECT_DOUBLE_EQ(schedule_factor(config, step, 100, 10), (step + 1) / 5.0);
    EXPECT_DOUBLE_EQ(schedule_factor(config, 4, 100, 10), 1.0) << name;
  }
}

TEST(Schedule, CosineTakesItsClosedFormValues) {
  const ScheduleConfig config = schedule("cosine", 20, 0.1);  // 80 steps remain
  EXPECT_NEAR(schedule_factor(config, 20, 100, 1), 1.0, 1e-15);
  EXPECT_NEAR(schedule_factor(config, 40, 100, 1), 0.1 + 0.9 * (0.5 + std::sqrt(2.0) / 4),
              1e-15);                                             // a quarter
  EXPECT_NEAR(schedule_factor(config, 60, 100, 1), 0.55, 1e-15);  // half
  EXPECT_NEAR(schedule_factor(config, 73, 100, 1), 0.1 + 0.9 * 0.5 * (1 + std::cos(M_PI * 53 / 80)), 1e-15);
  EXPECT_NEAR(schedule_factor(config, 100, 100, 1), 0.1, 1e-15);
  EXPECT_NEAR(schedule_factor(config, 1000, 100, 1), 0.1, 1e-15);
}

TEST(Schedule, LinearFallsByEqualAmounts) {
  const ScheduleConfig config = schedule("linear", 0, 0.2);
  for (int step = 0; step <= 10; ++step)
    EXPECT_NEAR(schedule_factor(config, step, 10, 1), 1.0 - 0.08 * step, 1e-15);
}

TEST(Schedule, ConstantStaysAtOne) {
  for (int step : {0, 5, 99}) EXPECT_EQ(schedule_factor(schedule("constant"), step, 100, 1), 1.0);
}

TEST(Schedule, WarmUpStableDecayHasItsCorners) {
  ScheduleConfig config = schedule("wsd", 10, 0.5);
  config.decay_fraction = 0.25;  // of 80 steps after the warm-up: 20
  EXPECT_EQ(schedule_factor(config, 10, 90, 1), 1.0);
  EXPECT_EQ(schedule_factor(config, 70, 90, 1), 1.0);
  EXPECT_NEAR(schedule_factor(config, 71, 90, 1), 1.0 - 0.5 / 20, 1e-15);
  EXPECT_NEAR(schedule_factor(config, 80, 90, 1), 0.75, 1e-15);
  EXPECT_NEAR(schedule_factor(config, 90, 90, 1), 0.5, 1e-15);
  config.decay_fraction = 0.0;
  EXPECT_EQ(schedule_factor(config, 90, 90, 1), 1.0);
}

TEST(Schedule, WarmUpEpochsAreCountedInSteps) {
  ScheduleConfig config = schedule("constant", -1);
  config.warmup_epochs = 1.5;
  EXPECT_DOUBLE_EQ(schedule_factor(config, 0, 100, 6), 1.0 / 10.0);
  EXPECT_DOUBLE_EQ(schedule_factor(config, 8, 100, 6), 9.0 / 10.0);
  EXPECT_EQ(schedule_factor(config, 9, 100, 6), 1.0);
}

TEST(Schedule, WarmUpLongerThanTheRunStaysFinite) {
  const ScheduleConfig config = schedule("cosine", 50);
  EXPECT_NEAR(schedule_factor(config, 9, 10, 1), 10.0 / 51.0, 1e-15);
  EXPECT_TRUE(std::isfinite(schedule_factor(config, 60, 10, 1)));
}

TEST(ScheduleRecipe, ReadsEveryKey) {
  const ScheduleConfig config =
      parse_schedule("{name: wsd, warmup_steps: 7, final: 0.25, decay_fraction: 0.5}");
  EXPECT_EQ(config.name, "wsd");
  EXPECT_EQ(config.warmup_steps, 7);
  EXPECT_EQ(config.final, 0.25);
  EXPECT_EQ(config.decay_fraction, 0.5);
  EXPECT_EQ(parse_schedule("{warmup_epochs: 2}").warmup_epochs, 2.0);
  EXPECT_EQ(parse_schedule("{}").name, "cosine");
}

TEST(ScheduleRecipe, RefusesWhatWouldHaveNoEffect) {
  EXPECT_NE(problem_of("{warmup_steps: 1, warmup_epochs: 1}").find("not both"), std::string::npos);
  EXPECT_NE(problem_of("{name: linear, decay_fraction: 0.1}").find("wsd"), std::string::npos);
  EXPECT_NE(problem_of("{name: constant, final: 0.1}").find("no effect"), std::string::npos);
  EXPECT_NE(problem_of("{name: cosin}").find("cosine"), std::string::npos);
  EXPECT_NE(problem_of("{final: 2.0}"), "");
  EXPECT_NE(problem_of("{warmup_steps: -1}"), "");
}

TEST(ScheduleRecipe, ResolvedFormLoadsAgain) {
  for (const std::string& name : schedule_names()) {
    Recipe recipe = Recipe::parse("{name: " + name + ", warmup_steps: 3}", "test.yaml");
    ScheduleConfig::parse(recipe.root());
    EXPECT_EQ(problem_of(recipe.resolved()), "") << name;
  }
}

}  // namespace
}  // namespace exfusion
