#include "fusion/fusion_config.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "core/recipe.h"
#include "fusion_recipe.h"

namespace exfusion {
namespace {

TEST(FusionRecipe, ReadsEveryKey) {
  const FusionConfig config = parse(
      "{experts: 8, weights: learned, normalize: softmax, temperature: 2.0, init: copy_noise, noise: 0.5, "
      "layers: [1, 3], "
      "lr: 0.01, weight_decay: 0.1, schedule: {name: constant}}");
  EXPECT_EQ(config.experts, 8);
  EXPECT_EQ(config.temperature, 2.0);
  EXPECT_EQ(config.init, "copy_noise");
  EXPECT_EQ(config.noise, 0.5);
  EXPECT_EQ(config.layers, (std::vector<std::string>{"1", "3"}));
  EXPECT_EQ(config.lr, 0.01);
  EXPECT_EQ(config.weight_decay, 0.1);
  ASSERT_TRUE(config.schedule.has_value());
  EXPECT_EQ(config.schedule->name, "constant");
}

TEST(FusionRecipe, HasTheDocumentedDefaults) {
  const FusionConfig config = parse("{}");
  EXPECT_EQ(config.experts, 4);
  EXPECT_EQ(config.weights, "learned");
  EXPECT_EQ(config.init, "independent");
  EXPECT_FALSE(config.lr.has_value());
  EXPECT_FALSE(config.schedule.has_value());
}

TEST(FusionRecipe, RefusesCopiesThatCouldNeverSeparate) {
  for (const char* text : {"{init: copy}", "{init: copy, weights: static}", "{init: copy, normalize: none}",
                           "{init: copy_noise, noise: 0.0}"}) {
    EXPECT_NE(problem_of(text).find("never separate"), std::string::npos) << text;
  }
  EXPECT_EQ(problem_of("{init: copy, experts: 1}"), "");
}

TEST(FusionRecipe, RefusesKeysWithoutEffectInOneLine) {
  for (const char* key :
       {"normalize: none", "temperature: 2.0", "lr: 0.1", "weight_decay: 0.1", "schedule: {name: linear}"}) {
    const std::string problem = problem_of(std::string("{weights: static, ") + key + "}");
    EXPECT_NE(problem.find("belongs to weights: learned"), std::string::npos) << key;
    EXPECT_EQ(problem.find('\n'), std::string::npos) << problem;
  }
  EXPECT_NE(problem_of("{normalize: none, temperature: 2.0}").find("softmax"), std::string::npos);
  EXPECT_NE(problem_of("{noise: 0.1}").find("copy_noise"), std::string::npos);
}

TEST(FusionRecipe, OneDenseFormStandsForConstantEqualWeightsAlone) {
  EXPECT_FALSE(parse("{weights: static, materialize: false}").materialize);
  for (const auto& [text, reason] : std::vector<std::pair<std::string, std::string>>{
           {"{materialize: false}", "this one is learned"},
           {"{weights: memory, materialize: false}", "this one is memory"},
           {"{weights: static, expert_dropout: 0.1, materialize: false}", "vary them"},
           {"{weights: static, dirichlet: 1, materialize: false}", "vary them"},
           {"{weights: static, from: model, init: split, materialize: false}", "depend on another model"},
           {"{weights: static, state: shared_moments, materialize: false}", "has its own moments"}}) {
    EXPECT_NE(problem_of(text).find(reason), std::string::npos) << text << ": " << problem_of(text);
  }
}

TEST(FusionRecipe, MomentsAreSharedBetweenExperts) {
  EXPECT_FALSE(parse("{}").shares_moments());
  EXPECT_TRUE(parse("{state: shared_moments}").shares_moments());
  EXPECT_NE(problem_of("{state: shared_moments, experts: 1}").find("there is one"), std::string::npos);
  EXPECT_EQ(problem_of("{weights: memory, init: copy}"), "");
  EXPECT_NE(problem_of("{weights: memory, init: copy, state: shared_moments}").find("state: full"),
            std::string::npos);
  EXPECT_NE(problem_of("{state: half}").find("shared_moments"), std::string::npos);
}

TEST(FusionRecipe, MemoryKeysBelongToMemoryWeights) {
  for (const char* key : {"forward: blend", "momentum: 0.5", "router_std: 0.1", "balance: 0.1"}) {
    EXPECT_EQ(problem_of(std::string("{weights: memory, ") + key + "}"), "");
    EXPECT_NE(problem_of(std::string("{weights: learned, ") + key + "}").find("weights: memory"),
              std::string::npos);
    EXPECT_NE(problem_of(std::string("{weights: static, ") + key + "}").find("weights: memory"),
              std::string::npos);
  }
  EXPECT_NE(problem_of("{weights: memory, normalize: none}").find("weights: learned"), std::string::npos);
}

TEST(FusionRecipe, RefusesWhatIsOutOfRange) {
  for (const char* text :
       {"{experts: 0}", "{experts: 65}", "{weights: dynamic}", "{temperature: 0.0}", "{init: zeros}",
        "{weights: memory, momentum: 1.0}", "{weights: memory, forward: both}",
        "{weights: memory, balance: -1}", "{expert_dropout: 1.5}", "{dirichlet: -1}", "{expert: 4}"}) {
    EXPECT_NE(problem_of(text), "") << text;
  }
}

TEST(FusionRecipe, ResolvedFormLoadsAgain) {
  for (const char* text :
       {"{}", "{weights: static}", "{normalize: none, lr: 0.1}", "{init: copy_noise, layers: last:2}",
        "{weights: memory, forward: blend, lr: 0.1, dirichlet: 3}"}) {
    Recipe recipe = Recipe::parse(text, "test.yaml");
    FusionConfig::parse(recipe.root());
    EXPECT_EQ(problem_of(recipe.resolved()), "") << recipe.resolved();
  }
}

}  // namespace
}  // namespace exfusion
