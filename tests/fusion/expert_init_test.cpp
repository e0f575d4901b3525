#include "fusion/expert_init.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "core/error.h"
#include "core/recipe.h"
#include "fusion/fused_update.h"
#include "fusion_recipe.h"
#include "numbers.h"

namespace exfusion {
namespace {

constexpr std::int64_t kSourceHidden = 200, kSourceDim = 96;

// A "trained" FFN: every tensor with its own mean and standard deviation.
FfnTensors trained_ffn(std::int64_t hidden = kSourceHidden) {
  return {normal_numbers({hidden, kSourceDim}, 1) * 0.3f + 0.1f, normal_numbers({hidden}, 2) * 0.5f - 0.4f,
          normal_numbers({kSourceDim, hidden}, 3) * 0.2f - 0.05f, normal_numbers({kSourceDim}, 4)};
}

FusionConfig init_config(const std::string& init, std::int64_t experts = 4) {
  FusionConfig config;
  config.experts = experts;
  config.init = init;
  config.from = "source";
  return config;
}

std::vector<float> uniform(std::int64_t n) {
  return std::vector<float>(static_cast<std::size_t>(n), 1.0f / static_cast<float>(n));
}

std::vector<FfnTensors> experts_of(const FusionConfig& config, const FfnTensors& dense,
                                   std::uint64_t seed = 5, std::int64_t ffn = 1) {
  std::vector<FfnTensors> experts;
  for (std::int64_t k = 0; k < config.experts; ++k)
    experts.push_back(initial_expert(config, dense, seed, ffn, k, uniform(config.experts)));
  return experts;
}

bool equal(const FfnTensors& a, const FfnTensors& b) {
  for (std::size_t t = 0; t < 4; ++t) {
    if (!at::equal(a[t], b[t])) return false;
  }
  return true;
}

// sum_k a_k W_k by the product's own kernel.
at::Tensor fused(const std::vector<FfnTensors>& experts, std::size_t t, const std::vector<float>& a) {
  std::vector<at::Tensor> own;
  std::vector<float*> pointers;
  for (const FfnTensors& expert : experts) own.push_back(expert[t].clone());
  for (at::Tensor& tensor : own) pointers.push_back(tensor.mutable_data_ptr<float>());
  at::Tensor result = at::empty_like(experts[0][t]);
  fuse_experts<float>({result.numel(), result.mutable_data_ptr<float>(), nullptr, pointers, {}, {}},
                      std::span<const float>(a));
  return result;
}

// The hidden units in which two FFNs differ in this tensor.
std::set<std::int64_t> different_units(const at::Tensor& a, const at::Tensor& b, std::int64_t dimension) {
  std::set<std::int64_t> units;
  for (std::int64_t unit = 0; unit < a.size(dimension); ++unit) {
    if (!at::equal(a.select(dimension, unit), b.select(dimension, unit))) units.insert(unit);
  }
  return units;
}

at::Tensor forward(const FfnTensors& ffn, const at::Tensor& x) {
  const at::Tensor hidden = at::gelu(at::linear(x, ffn[0].to(at::kDouble), ffn[1].to(at::kDouble)));
  return at::linear(hidden, ffn[2].to(at::kDouble), ffn[3].to(at::kDouble));
}

TEST(ExpertInit, CopiesAreTheSource) {
  const FfnTensors dense = trained_ffn();
  for (const FfnTensors& expert : experts_of(init_config("copy"), dense)) {
    EXPECT_TRUE(equal(expert, dense));
    EXPECT_NE(expert[0].data_ptr(), dense[0].data_ptr());
  }
}

TEST(ExpertInit, NoiseHasTheStatedRelativeSize) {
  FusionConfig config = init_config("copy_noise");
  config.noise = 0.25;
  const FfnTensors dense = trained_ffn();
  const auto experts = experts_of(config, dense);
  EXPECT_FALSE(equal(experts[0], experts[1]));
  for (const std::size_t t : {0u, 2u}) {
    const at::Tensor noise = experts[2][t].to(at::kDouble) - dense[t].to(at::kDouble);
    const double expected = 0.25 * dense[t].to(at::kDouble).std(false).item<double>();
    EXPECT_NEAR(noise.std(false).item<double>(), expected, 0.03 * expected);
    EXPECT_NEAR(noise.mean().item<double>(), 0.0, 5 * expected / std::sqrt(kSourceHidden * kSourceDim));
  }
}

TEST(ExpertInit, SplitFusesToTheSourceExactlyWhereTheWeightsArePowersOfTwo) {
  const FfnTensors dense = trained_ffn();
  for (const std::int64_t n : {1, 2, 4}) {
    const auto experts = experts_of(init_config("split", n), dense);
    for (std::size_t t = 0; t < 4; ++t) EXPECT_TRUE(at::equal(fused(experts, t, uniform(n)), dense[t])) << n;
  }
}

TEST(ExpertInit, SplitFusesToTheSourceWithAnyWeights) {
  const FfnTensors dense = trained_ffn();
  const std::vector<float> a = {0.5f, 0.3f, 0.9f};
  std::vector<FfnTensors> experts;
  for (std::int64_t k = 0; k < 3; ++k)
    experts.push_back(initial_expert(init_config("split", 3), dense, 0, 0, k, a));
  for (std::size_t t = 0; t < 4; ++t) {
    at::Tensor sum = at::zeros_like(dense[t], at::kDouble);
    for (std::size_t k = 0; k < 3; ++k) sum += a[k] * experts[k][t].to(at::kDouble);
    EXPECT_LE((sum - dense[t]).abs().max().item<double>(), 1.2e-7 * dense[t].abs().max().item<double>());
  }
}

TEST(ExpertInit, SplitGivesEachHiddenUnitToOneExpertInContiguousNearlyEqualParts) {
  const FfnTensors dense = trained_ffn(10);
  const auto experts = experts_of(init_config("split", 4), dense);
  std::int64_t next = 0;
  for (const FfnTensors& expert : experts) {
    const auto units = different_units(expert[0], at::zeros_like(expert[0]), 0);
    EXPECT_EQ(different_units(expert[2], at::zeros_like(expert[2]), 1), units);
    EXPECT_EQ(different_units(expert[1].unsqueeze(1), at::zeros({10, 1}), 0), units);
    ASSERT_TRUE(units.size() == 2 || units.size() == 3);
    EXPECT_EQ(*units.begin(), next);
    EXPECT_EQ(*units.rbegin(), next + static_cast<std::int64_t>(units.size()) - 1);
    next = *units.rbegin() + 1;
    EXPECT_TRUE(at::equal(expert[3], dense[3]));
  }
  EXPECT_EQ(next, 10);
}

TEST(ExpertInit, DropRedrawsExactlyTheStatedPartOfTheHiddenUnits) {
  const FfnTensors dense = trained_ffn();
  for (const double ratio : {0.5, 0.25, 1.0}) {
    FusionConfig config = init_config("drop");
    config.drop_ratio = ratio;
    std::set<std::set<std::int64_t>> choices;
    for (const FfnTensors& expert : experts_of(config, dense)) {
      const auto units = different_units(expert[0], dense[0], 0);
      EXPECT_EQ(units.size(), static_cast<std::size_t>(ratio * kSourceHidden));
      EXPECT_EQ(different_units(expert[1].unsqueeze(1), dense[1].unsqueeze(1), 0), units);
      EXPECT_EQ(different_units(expert[2], dense[2], 1), units);
      EXPECT_TRUE(at::equal(expert[3], dense[3]));
      choices.insert(units);
    }
    EXPECT_EQ(choices.size(), ratio == 1.0 ? 1u : 4u);
  }
}

TEST(ExpertInit, DropDrawsFromTheStatisticsOfWhatItReplaces) {
  FfnTensors dense = trained_ffn();
  dense[0].narrow(0, 0, 100).add_(3.0);  // so the slices' statistics depend on which units were chosen
  const auto experts = experts_of(init_config("drop", 2), dense);
  const auto chosen = different_units(experts[0][0], dense[0], 0);
  const at::Tensor index = at::tensor(std::vector<std::int64_t>(chosen.begin(), chosen.end()), at::kLong);
  for (const std::size_t t : {0u, 1u, 2u}) {
    const at::Tensor replaced = dense[t].index_select(t == 2 ? 1 : 0, index).to(at::kDouble);
    const at::Tensor drawn = experts[0][t].index_select(t == 2 ? 1 : 0, index).to(at::kDouble);
    const double std = replaced.std(false).item<double>(), n = static_cast<double>(drawn.numel());
    EXPECT_NEAR(drawn.mean().item<double>(), replaced.mean().item<double>(), 4 * std / std::sqrt(n)) << t;
    EXPECT_NEAR(drawn.std(false).item<double>(), std, 4 * std / std::sqrt(2 * n)) << t;
    // Own numbers, not the replaced ones in another order.
    EXPECT_FALSE(at::equal(std::get<0>(drawn.flatten().sort()), std::get<0>(replaced.flatten().sort())));
  }
}

TEST(ExpertInit, DrawsDependOnSeedFfnAndExpertAlone) {
  const FfnTensors dense = trained_ffn();
  const FusionConfig config = init_config("drop");
  const auto experts = experts_of(config, dense);
  EXPECT_TRUE(equal(experts_of(config, dense)[3], experts[3]));
  EXPECT_FALSE(equal(experts_of(config, dense, 6)[3], experts[3]));
  EXPECT_FALSE(equal(experts_of(config, dense, 5, 2)[3], experts[3]));
  EXPECT_FALSE(equal(experts[2], experts[3]));
  EXPECT_TRUE(
      equal(experts_of(init_config("drop", 2), dense)[1], experts[1]));  // however many experts there are
}

TEST(ExpertInit, ATinyDropRatioStillDropsAUnit) {
  FusionConfig config = init_config("drop", 2);
  config.drop_ratio = 1e-6;
  const FfnTensors dense = trained_ffn(8);
  EXPECT_EQ(different_units(experts_of(config, dense)[1][0], dense[0], 0).size(), 1u);
}

TEST(ExpertInit, PermutedExpertsAreTheSameFunctionInAnotherOrder) {
  FusionConfig config = init_config("drop");
  config.drop_ratio = 0.0;
  config.permute = true;
  const FfnTensors dense = trained_ffn();
  const at::Tensor x = normal_numbers({7, kSourceDim}, 9, at::kDouble);
  const auto experts = experts_of(config, dense);
  for (const FfnTensors& expert : experts) {
    EXPECT_GT(different_units(expert[0], dense[0], 0).size(), 150u);
    EXPECT_LE((forward(expert, x) - forward(dense, x)).abs().max().item<double>(), 1e-12);
  }
  EXPECT_FALSE(equal(experts[0], experts[1]));
}

TEST(ExpertInit, KeepsTheSourceWhereOnlyRoundingWouldChangeIt) {
  for (const char* init : {"copy", "split"}) {
    FusionConfig config = init_config(init);
    EXPECT_TRUE(keeps_source(config)) << init;
    config.from = "";
    EXPECT_FALSE(keeps_source(config)) << init;
  }
  for (const char* init : {"copy_noise", "drop", "stored"})
    EXPECT_FALSE(keeps_source(init_config(init))) << init;
}

// ---- the recipe

TEST(ExpertInitRecipe, ReadsItsKeys) {
  const FusionConfig config = parse("{from: runs/dense, init: drop, drop_ratio: 0.25, permute: true}");
  EXPECT_EQ(config.from, "runs/dense");
  EXPECT_EQ(config.init, "drop");
  EXPECT_EQ(config.drop_ratio, 0.25);
  EXPECT_TRUE(config.permute);
  EXPECT_EQ(parse("{from: x, init: drop}").drop_ratio, 0.5);
  EXPECT_FALSE(parse("{init: drop}").permute);
  EXPECT_EQ(parse("{from: x}").init, "stored");
  EXPECT_EQ(parse("{}").init, "independent");
}

TEST(ExpertInitRecipe, ResolvedFormLoadsAgain) {
  for (const char* text : {"{from: x}", "{from: x, init: split}", "{init: drop, permute: true}",
                           "{from: x, init: copy_noise, noise: 0.5}"}) {
    Recipe recipe = Recipe::parse(text, "test.yaml");
    const FusionConfig config = FusionConfig::parse(recipe.root());
    const FusionConfig again = parse(recipe.resolved());
    EXPECT_EQ(again.init, config.init) << recipe.resolved();
    EXPECT_EQ(again.from, config.from);
  }
}

TEST(ExpertInitRecipe, RefusesWhatHasNoEffectOrNoMeaning) {
  EXPECT_NE(problem_of("{from: x, init: independent}").find("choose copy"), std::string::npos);
  EXPECT_NE(problem_of("{from: x, init: independent_scaled}").find("choose copy"), std::string::npos);
  EXPECT_NE(problem_of("{from: x, noise: 0.1}").find("none is given here"), std::string::npos);
  EXPECT_NE(problem_of("{init: copy_noise, drop_ratio: 0.1}").find("init: drop"), std::string::npos);
  EXPECT_NE(problem_of("{init: split, permute: true}").find("init: drop"), std::string::npos);
  EXPECT_NE(problem_of("{init: drop, noise: 0.1}").find("init: copy_noise"), std::string::npos);
  EXPECT_NE(problem_of("{init: drop, drop_ratio: 1.5}"), "");
  EXPECT_NE(problem_of("{init: drop, permute: maybe}"), "");
  EXPECT_NE(problem_of("{from: '', init: copy_noise}").find("empty"), std::string::npos);
}

TEST(ExpertInitRecipe, AllowsEqualCopiesWhereSomethingCanTellThemApart) {
  for (const char* copies :
       {"init: copy", "init: copy_noise, noise: 0", "init: drop, drop_ratio: 0", "from: x, init: copy"}) {
    const std::string start = std::string("{") + copies;
    for (const char* equal : {"}", ", weights: static}", ", weights: learned}"})
      EXPECT_NE(problem_of(start + equal).find("never separate"), std::string::npos) << start << equal;
    for (const char* unequal : {", weights: memory}", ", weights: static, expert_dropout: 0.1}",
                                ", weights: static, dirichlet: 10}", ", experts: 1}"})
      EXPECT_EQ(problem_of(start + unequal), "") << start << unequal;
  }
  for (const char* different :
       {"{init: split}", "{init: drop}", "{init: drop, drop_ratio: 0, permute: true}"})
    EXPECT_EQ(problem_of(different), "") << different;
}

}  // namespace
}  // namespace exfusion
