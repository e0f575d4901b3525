#include "train/symmetry_alarm.h"

#include <limits>

#include "tiny_run.h"

namespace exfusion {
namespace {

FusionConfig config_of(const std::string& section) {
  return *TinyRun({"fusion=" + section}).config.fusion;
}

TEST(SymmetryAlarm, KnowsWhichRecipesKeepTheWeightsConstant) {
  EXPECT_TRUE(constant_weights(config_of("{experts: 3, weights: static}")));
  EXPECT_TRUE(constant_weights(config_of("{experts: 3, weights: learned, lr: 0}")));
  EXPECT_FALSE(constant_weights(config_of("{experts: 3, weights: learned}")));
  EXPECT_FALSE(constant_weights(config_of("{experts: 3, weights: memory}")));
  EXPECT_FALSE(constant_weights(config_of("{experts: 3, weights: static, dirichlet: 1.0}")));
  EXPECT_FALSE(constant_weights(config_of("{experts: 3, weights: static, expert_dropout: 0.5}")));
}

TEST(SymmetryAlarm, NeedsBothTheDirectionAndTheSizeOfTheStart) {
  const auto geometry = [](double ratio, double cosine) {
    return ExpertGeometry{.shares = {}, .difference_ratio = ratio, .difference_cosine = cosine};
  };
  EXPECT_TRUE(frozen(geometry(0.9, 1.0), 0.9));
  EXPECT_TRUE(frozen(geometry(0.9 * 1.0009, 0.99991), 0.9));
  EXPECT_FALSE(frozen(geometry(0.9 * 1.0011, 1.0), 0.9));
  EXPECT_FALSE(frozen(geometry(0.9 / 1.0011, 1.0), 0.9));
  EXPECT_FALSE(frozen(geometry(0.9, 0.9998), 0.9));
  const double none = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(frozen(geometry(none, none), 0.9));
}

TEST(SymmetryAlarm, NamesTheFiguresOfExpertsThatStayWhereTheyStarted) {
  TinyRun constant({"fusion={experts: 3, weights: static}", "optim.weight_decay=0.5"});
  constant.steps(5);
  const std::string text = frozen_text(constant.state);
  EXPECT_NE(text.find("2 of 2 FFNs"), std::string::npos) << text;
  EXPECT_NE(text.find("blocks.0.mlp: cos(D, D at the start) 1.000000"), std::string::npos) << text;
  EXPECT_NE(text.find("decay alone leaves 0.975"), std::string::npos) << text;  // (1 - 0.01 0.5)^5
}

TEST(SymmetryAlarm, IsSilentWhereExpertsMove) {
  TinyRun moving({"fusion={experts: 3, weights: learned, lr: 0.5}", "optim.lr=0.05"});
  moving.steps(20);
  EXPECT_EQ(frozen_text(moving.state), "");
}

}  // namespace
}  // namespace exfusion
