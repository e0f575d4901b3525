#include "train/run_config.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>

#include "tiny_run.h"

namespace exfusion {
namespace {

std::vector<std::string> problems(const std::string& text, const std::vector<std::string>& sets = {}) {
  std::vector<std::string> lines;
  try {
    Recipe recipe = Recipe::parse(text, "r.yaml", sets);
    parse_run(recipe);
  } catch (const RecipeError& error) {
    std::istringstream message(error.what());
    for (std::string line; std::getline(message, line);) lines.push_back(line);
  }
  return lines;
}

void expect_problem(const std::vector<std::string>& sets, const std::vector<std::string>& fragments) {
  const auto lines = problems(kTinyRecipe, sets);
  ASSERT_EQ(lines.size(), 1u) << (lines.empty() ? "no problem" : lines[1]);
  for (const std::string& fragment : fragments)
    EXPECT_NE(lines[0].find(fragment), std::string::npos) << "'" << fragment << "' is not in: " << lines[0];
}

TEST(RunConfig, ProblemsOfAllSectionsAreReportedTogetherWithTheirPlaces) {
  const auto lines = problems(
      "name: r\n"
      "seed: -1\n"
      "model: {arch: vit, size: Ti, image: 30, patch: 4}\n"
      "fusion: {experts: 65, weights: learnt}\n"
      "data: {name: synthetic, augment: {flip: 2}}\n"
      "train: {epochs: 1, global_batch: 0, clip: yes}\n"
      "optim: {lr: -1, schedule: {name: cosine, warmup: 3}}\n"
      "checkpoint: {keeep: 3}\n");
  const std::vector<std::pair<std::string, std::string>> expected = {{"r.yaml:2:7: ", "seed"},
                                                                     {"r.yaml:3:", "patch"},
                                                                     {"r.yaml:4:19: ", "fusion.experts"},
                                                                     {"r.yaml:4:32: ", "'learned'"},
                                                                     {"r.yaml:5:", "data.augment.flip"},
                                                                     {"r.yaml:6:", "train.global_batch"},
                                                                     {"r.yaml:6:", "train.clip"},
                                                                     {"r.yaml:7:", "optim.lr"},
                                                                     {"r.yaml:7:", "'optim.schedule.warmup'"},
                                                                     {"r.yaml:8:14: ", "'checkpoint.keep'"}};
  for (const auto& [place, fragment] : expected) {
    const auto found = std::find_if(lines.begin(), lines.end(), [&](const std::string& line) {
      return line.starts_with(place) && line.find(fragment) != std::string::npos;
    });
    EXPECT_NE(found, lines.end()) << place << " " << fragment;
  }
  EXPECT_EQ(lines.size(), expected.size());
}

TEST(RunConfig, ARunOfNoLengthIsRefused) {
  const auto lines = problems("model: {arch: vit, size: Ti}\ndata: {name: synthetic}\ntrain: {epochs: 0}\n");
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_NE(lines[0].find("train.epochs"), std::string::npos) << lines[0];
  EXPECT_NE(lines[0].find("train.steps"), std::string::npos) << lines[0];
}

TEST(RunConfig, AnEmptyRecipeAsksForModelAndData) {
  const auto lines = problems("name: r\n");
  for (const char* key : {"model.arch", "data.name"}) {
    EXPECT_TRUE(std::any_of(lines.begin(), lines.end(), [&](const std::string& line) {
      return line.find(key) != std::string::npos;
    })) << key;
  }
}

TEST(RunConfig, AMicroBatchIsPartOfTheGlobalBatch) {
  expect_problem({"train.micro_batch=33"}, {"--set train.micro_batch=33: ", "[1, 32]"});
  Recipe recipe = Recipe::parse("model: {arch: vit, size: Ti}\ndata: {name: synthetic}\ntrain: {steps: 1}\n",
                                "r.yaml", {"train.global_batch=24"});
  EXPECT_EQ(parse_run(recipe).train.micro_batch, 24);
}

TEST(RunConfig, WhatRunsOnTheCpuAloneIsRefusedOnAGpu) {
  expect_problem({"train.device=gpu"}, {"train.device", "cpu, cuda"});
  EXPECT_TRUE(problems(kTinyRecipe, {"train.device=cuda", kLearned[0]}).empty());
  expect_problem({"train.device=cuda", "fusion={experts: 3, weights: memory}"}, {"train.device", "memory"});
  expect_problem({"train.device=cuda", "model.ffn={name: smear}"}, {"train.device", "smear"});
}

TEST(RunConfig, TheNameIsOneOfAFolder) {
  for (const std::string name : {"a/b", "..", ".hidden", "a b", "''"})
    EXPECT_EQ(problems(kTinyRecipe, {"name=" + name}).size(), 1u) << name;
  EXPECT_TRUE(problems(kTinyRecipe, {"name=vit_s-2.1"}).empty());
}

TEST(RunConfig, FusedBlocksExist) {
  expect_problem({"fusion={layers: [0, 2]}"}, {"fusion.layers", "2", "2 blocks"});
  expect_problem({"fusion={layers: last:3}"}, {"fusion.layers", "last:3", "2 blocks"});
  EXPECT_EQ(TinyRun({"fusion={layers: [1]}"}).state.banks.at(0).name(), "blocks.1.mlp");
  EXPECT_EQ(TinyRun({"fusion={layers: last:2}"}).state.banks.size(), 2u);
}

TEST(RunConfig, ThereAreExpertsToShareOut) {
  const std::string shard = "dist.shard=experts";
  const std::vector<std::string> words = {"dist.shard: experts", "choose all", "or none"};
  const auto expect_none = [&](std::vector<std::string> sets, const std::string& why) {
    sets.push_back(shard);
    expect_problem(sets, {words[0], words[1], words[2], "has none (" + why + ")"});
  };
  expect_none({}, "fusion: none");
  expect_none({"fusion=none"}, "fusion: none");
  expect_none({kLearned[0], "control=dense"}, "control: dense");
  expect_none({"model.ffn={name: topk, experts: 3}"}, "model.ffn.name: topk");
  expect_none({"fusion={weights: static, materialize: false}"}, "fusion.materialize: false");
  EXPECT_EQ(TinyRun({kLearned[0], shard}).config.dist.shard, "experts");
  EXPECT_EQ(TinyRun({"fusion=none", "dist.shard=all"}).config.dist.shard, "all");
}

TEST(RunConfig, FusionIsOffWithoutItsSectionAndWithNone) {
  EXPECT_FALSE(TinyRun().config.fusion);
  EXPECT_FALSE(TinyRun({kLearned[0], "fusion=none"}).config.fusion);
  EXPECT_TRUE(TinyRun({"fusion={}"}).config.fusion);
}

TEST(RunConfig, TheResolvedRecipeIsARecipeOfTheSameRun) {
  for (const auto& sets :
       std::vector<std::vector<std::string>>{{}, kLearned, {"fusion=none"}, {"optim.schedule={name: wsd}"}}) {
    const TinyRun run(sets);
    Recipe again = Recipe::parse(run.resolved, "resolved.yaml");
    const RunConfig config = parse_run(again);
    EXPECT_EQ(again.resolved(), run.resolved);
    EXPECT_EQ(config.train.steps, 6);
    EXPECT_EQ(config.fusion.has_value(), run.config.fusion.has_value());
  }
}

TEST(RunConfig, StepsWinOverEpochsAndAPartOfAnEpochIsAllowed) {
  const auto steps = [](double epochs, std::int64_t fixed, std::int64_t per_epoch) {
    TrainConfig config;
    config.epochs = epochs;
    config.steps = fixed;
    return total_steps(config, per_epoch);
  };
  EXPECT_EQ(steps(3.0, 0, 468), 1404);
  EXPECT_EQ(steps(0.25, 0, 468), 117);
  EXPECT_EQ(steps(0.1, 0, 468), 47);  // 46.8
  EXPECT_EQ(steps(0.0001, 0, 468), 1);
  EXPECT_EQ(steps(3.0, 7, 468), 7);
}

TEST(RunConfig, AResumedRunMayChangeOnlyWhatLeavesItsStepsAlone) {
  for (const char* key : {"train.epochs", "train.steps", "train.eval_every_steps", "train.threads",
                          "data.root", "data.workers", "checkpoint.keep", "checkpoint.every_steps"})
    EXPECT_TRUE(may_change_on_resume(key)) << key;
  for (const char* key : {"seed", "model.dim", "fusion.experts", "data.name", "train.global_batch",
                          "optim.lr", "train.precision", "train.micro_batch", "train", "checkpoint", ""})
    EXPECT_FALSE(may_change_on_resume(key)) << key;
}

// A checkpoint may be older than a key: its run went by the key's default.
TEST(RunConfig, AnOlderRecipeIsTheOneOfTodayWithDefaultsForWhatIsNew) {
  const auto resolved = [](const std::vector<std::string>& sets) {
    Recipe recipe = Recipe::parse(kTinyRecipe, "tiny.yaml", sets);
    parse_run(recipe);
    return recipe.resolved();
  };
  const std::string now = resolved({"fusion={weights: static}"});
  std::string older;
  std::istringstream lines(now);
  for (std::string line; std::getline(lines, line);) {
    if (line.find("materialize:") == std::string::npos && line.find("state:") == std::string::npos)
      older += line + "\n";
  }
  EXPECT_LT(older.size(), now.size());
  EXPECT_EQ(changed_line(older, now), "");
  EXPECT_NE(
      changed_line(older, resolved({"fusion={weights: static, materialize: false}"})).find("materialize"),
      std::string::npos);
  EXPECT_NE(changed_line(older, resolved({"fusion={weights: static}", "optim.lr=0.5"})).find("lr"),
            std::string::npos);
}

}  // namespace
}  // namespace exfusion
