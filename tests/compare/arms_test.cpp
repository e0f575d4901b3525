#include "compare/arms.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "core/error.h"

namespace exfusion {
namespace {

std::vector<std::string> names(const std::vector<Arm>& arms) {
  std::vector<std::string> result;
  for (const Arm& arm : arms) result.push_back(arm.name);
  return result;
}

std::string refusal(const std::string& list) {
  try {
    parse_arms(list);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

TEST(Arms, EveryNameIsThereOnceAndSaysWhatItIs) {
  std::set<std::string> seen;
  for (const Arm& arm : all_arms()) {
    EXPECT_TRUE(seen.insert(arm.name).second) << arm.name;
    EXPECT_FALSE(arm.sets.empty()) << arm.name;
    EXPECT_FALSE(arm.sentence.empty()) << arm.name;
  }
  EXPECT_EQ(all_arms().front().name, "dense");
}

TEST(Arms, ControlsAreWhatAScepticWouldTryInsteadOfFusion) {
  std::set<std::string> controls;
  for (const Arm& arm : all_arms()) {
    if (arm.control) controls.insert(arm.name);
  }
  EXPECT_EQ(controls, (std::set<std::string>{"dense", "ewa", "ema", "average", "dense_init_scaled",
                                             "dense_lr_scaled", "dense_lr2", "dense_gain"}));
}

TEST(Arms, TheSentenceOfTheSoupSaysItsConstants) {
  const auto& arms = all_arms();
  const auto average = std::ranges::find(arms, "average", &Arm::name);
  EXPECT_NE(average->sentence.find("last " + std::to_string(kSoupCheckpoints)), std::string::npos);
  EXPECT_NE(average->sentence.find(std::to_string(100 / kSoupSpacing) + " %"), std::string::npos);
}

TEST(Arms, KeepTheOrderGiven) {
  EXPECT_EQ(names(parse_arms("static,dense,ema")), (std::vector<std::string>{"static", "dense", "ema"}));
}

TEST(Arms, DenseIsAddedInFront) {
  EXPECT_EQ(names(parse_arms("learned,dense_lr2")),
            (std::vector<std::string>{"dense", "learned", "dense_lr2"}));
}

TEST(Arms, AnUnknownOneIsRefusedWithTheNearest) {
  EXPECT_NE(refusal("dense,memry").find("no arm 'memry' (did you mean 'memory'?)"), std::string::npos);
  EXPECT_NE(refusal("dense,zzzzzzzz").find("the arms are dense, static"), std::string::npos);
  EXPECT_NE(refusal(",dense").find("no arm ''"), std::string::npos);
}

TEST(Arms, TheSameTwiceIsRefused) {
  EXPECT_EQ(refusal("static,dense,static"), "--arms names static twice");
}

TEST(Arms, ScaledDenseNeedsAFusedArm) {
  EXPECT_NE(refusal("dense,ema,dense_lr_scaled").find("add one, best learned_free"), std::string::npos);
  EXPECT_EQ(scale_source(parse_arms("static,learned_free,dense_lr_scaled")), "learned_free");
  EXPECT_EQ(scale_source(parse_arms("static,dense_lr_scaled")), "static");
  EXPECT_EQ(scale_source(parse_arms("dense,ema")), "");
}

}  // namespace
}  // namespace exfusion
