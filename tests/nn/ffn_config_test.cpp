#include "nn/ffn_config.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "core/recipe.h"
#include "nn/feed_forward.h"

namespace exfusion {
namespace {

constexpr std::int64_t kBlocks = 4;

FfnConfig parse(const std::string& text) {
  Recipe recipe = Recipe::parse("ffn: {" + text + "}\n", "r.yaml");
  const FfnConfig config = FfnConfig::parse(recipe.root().child("ffn"), kBlocks);
  recipe.finish();
  return config;
}

std::string problem_of(const std::string& text) {
  try {
    parse(text);
  } catch (const RecipeError& error) {
    return error.what();
  }
  return "";
}

TEST(FfnConfig, ReadsEveryKey) {
  const FfnConfig topk = parse(
      "name: topk, experts: 8, layers: last:2, top_k: 3, renormalize: false, capacity_factor: 1.25, "
      "balance_loss: 0.02, z_loss: 1e-3, bias_balance: 1e-2");
  EXPECT_EQ(topk.name, "topk");
  EXPECT_EQ(topk.experts, 8);
  EXPECT_EQ(topk.chosen_blocks(kBlocks), (std::vector<bool>{false, false, true, true}));
  EXPECT_EQ(topk.top_k, 3);
  EXPECT_FALSE(topk.renormalize);
  EXPECT_EQ(topk.capacity_factor, 1.25);
  EXPECT_EQ(topk.balance_loss, 0.02);
  EXPECT_EQ(topk.z_loss, 1e-3);
  EXPECT_EQ(topk.bias_balance, 1e-2);
  EXPECT_EQ(parse("name: ewa, share_rate: 0.5").share_rate, 0.5);
  EXPECT_EQ(parse("name: smear, layers: [0, 3]").chosen_blocks(kBlocks),
            (std::vector<bool>{true, false, false, true}));
}

TEST(FfnConfig, WithoutKeysItIsDense) {
  EXPECT_EQ(parse("").name, "dense");
  EXPECT_EQ(parse("name: dense").name, "dense");
}

TEST(FfnConfig, RefusesKeysWithoutEffectInOneLine) {
  const std::vector<std::pair<const char*, const char*>> cases = {
      {"name: dense, experts: 4", "ffn.experts has no effect on dense FFNs"},
      {"layers: all", "ffn.layers has no effect on dense FFNs"},
      {"name: dense, top_k: 2", "ffn.top_k belongs to name: topk"},
      {"name: ewa, balance_loss: 0.1", "ffn.balance_loss belongs to name: topk"},
      {"name: smear, share_rate: 0.1", "ffn.share_rate belongs to name: ewa"},
      {"name: topk, share_rate: 0.1", "ffn.share_rate belongs to name: ewa"},
      {"name: topk, top_k: 1, renormalize: true", "renormalize belongs to top_k >= 2"}};
  for (const auto& [text, part] : cases) {
    const std::string problem = problem_of(text);
    EXPECT_NE(problem.find(part), std::string::npos) << text << ": " << problem;
    EXPECT_EQ(problem.find('\n'), std::string::npos) << problem;
  }
}

TEST(FfnConfig, RefusesWhatIsOutOfRange) {
  const std::vector<std::pair<const char*, const char*>> cases = {
      {"name: moe", "ffn.name must be one of {dense, topk, smear, ewa}"},
      {"name: topk, experts: 0", "ffn.experts"},
      {"name: topk, experts: 257", "ffn.experts"},
      {"name: topk, experts: 4, top_k: 5", "ffn.top_k: 5 of 4 experts"},
      {"name: topk, experts: 1", "ffn.top_k: 2 of 1 experts"},
      {"name: topk, top_k: 0", "ffn.top_k"},
      {"name: topk, capacity_factor: -1", "ffn.capacity_factor"},
      {"name: topk, bias_balance: 2", "ffn.bias_balance"},
      {"name: ewa, share_rate: 1.5", "ffn.share_rate"},
      {"name: ewa, layers: last:5", "ffn.layers: last:5 of a model with 4 blocks"},
      {"name: ewa, layers: [0, 4]", "ffn.layers: block 4"},
      {"name: ewa, layers: some", "ffn.layers must be"},
      {"name: ewa, shares: 1", "unknown key"}};
  for (const auto& [text, part] : cases)
    EXPECT_NE(problem_of(text).find(part), std::string::npos) << text << ": " << problem_of(text);
}

TEST(FfnConfig, ResolvedFormLoadsAgain) {
  for (const char* text :
       {"", "name: topk", "name: topk, top_k: 1", "name: smear, layers: [1]", "name: ewa, layers: every:2"}) {
    Recipe recipe = Recipe::parse("ffn: {" + std::string(text) + "}\n", "r.yaml");
    FfnConfig::parse(recipe.root().child("ffn"), kBlocks);
    Recipe again = Recipe::parse(recipe.resolved(), "again.yaml");
    FfnConfig::parse(again.root().child("ffn"), kBlocks);
    EXPECT_NO_THROW(again.finish()) << recipe.resolved();
    EXPECT_EQ(again.resolved(), recipe.resolved());
  }
}

TEST(FfnConfig, CountsTheNumbersThatEachKindStores) {
  for (const char* text : {"name: dense", "name: topk, experts: 5", "name: topk, bias_balance: 0.1",
                           "name: smear", "name: ewa"}) {
    const FfnConfig config = parse(text);
    const auto ffn = make_ffn(config, 6, 9, 0);
    double count = 0;
    for (const auto& tensor : ffn->parameters()) count += static_cast<double>(tensor.numel());
    for (const auto& tensor : ffn->buffers()) count += static_cast<double>(tensor.numel());
    EXPECT_EQ(config.stored_numbers(6, 9), count) << text;
  }
}

}  // namespace
}  // namespace exfusion
