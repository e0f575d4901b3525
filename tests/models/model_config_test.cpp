#include "models/model.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "core/recipe.h"

namespace exfusion {
namespace {

ModelConfig parse(const std::string& model) {
  auto recipe = Recipe::parse("model: {" + model + "}\n", "r.yaml");
  const auto config = ModelConfig::parse(recipe.root().child("model"));
  recipe.finish();
  return config;
}

// All problems of a model section, or "" if there is none.
std::string problems(const std::string& model) {
  try {
    parse(model);
  } catch (const RecipeError& error) {
    return error.what();
  }
  return "";
}

void expect_problem(const std::string& model, const std::string& part) {
  const auto found = problems(model);
  EXPECT_NE(found.find(part), std::string::npos)
      << "{" << model << "}\n  reports: " << found << "\n  not: " << part;
  EXPECT_EQ(std::count(found.begin(), found.end(), '\n'), 0) << "more than one problem: " << found;
}

TEST(ModelConfig, ReadsEveryKey) {
  const auto config = parse(
      "arch: vit, dim: 60, depth: 3, heads: 5, mlp_ratio: 2.5, patch: 7, image: 28, channels: 1, classes: "
      "10, pool: avg, "
      "drop_path: 0.1");
  EXPECT_EQ(config.arch, "vit");
  EXPECT_EQ(config.vit.dim, 60);
  EXPECT_EQ(config.vit.depth, 3);
  EXPECT_EQ(config.vit.heads, 5);
  EXPECT_EQ(config.vit.hidden, 150);
  EXPECT_EQ(config.vit.patch, 7);
  EXPECT_EQ(config.vit.pool, "avg");
  EXPECT_EQ(config.vit.drop_path, 0.1);
  EXPECT_EQ(config.vit.tokens(), 16);
  const auto shape = config.image_shape();
  EXPECT_EQ(shape.channels, 1);
  EXPECT_EQ(shape.size, 28);
  EXPECT_EQ(shape.classes, 10);
}

TEST(ModelConfig, SizesArePresetsThatKeysOverride) {
  const auto small = parse("arch: vit, size: S").vit;
  EXPECT_EQ(small.dim, 384);
  EXPECT_EQ(small.depth, 12);
  EXPECT_EQ(small.heads, 6);
  EXPECT_EQ(small.hidden, 1536);
  EXPECT_EQ(small.patch, 16);
  EXPECT_EQ(small.image, 224);
  EXPECT_EQ(small.channels, 3);
  EXPECT_EQ(small.classes, 1000);
  EXPECT_EQ(small.pool, "token");
  EXPECT_EQ(parse("arch: vit, size: Ti").vit.heads, 3);
  EXPECT_EQ(parse("arch: vit, size: B").vit.dim, 768);
  EXPECT_EQ(parse("arch: vit, size: L").vit.depth, 24);
  const auto shallow = parse("arch: vit, size: S, depth: 4").vit;
  EXPECT_EQ(shallow.dim, 384);
  EXPECT_EQ(shallow.depth, 4);
}

TEST(ModelConfig, CountsParametersAsTheModelHasThem) {
  for (const auto* pool : {"token", "avg"}) {
    const auto config =
        parse(std::string("arch: vit, dim: 12, depth: 2, heads: 3, patch: 7, image: 28, classes: 5, pool: ") +
              pool);
    double count = 0;
    for (const auto& parameter : make_model(config, 1)->parameters())
      count += static_cast<double>(parameter.numel());
    EXPECT_EQ(config.vit.parameter_count(), count) << pool;
  }
  EXPECT_EQ(parse("arch: vit, size: S").vit.parameter_count(), 22050664);  // as timm's vit_small_patch16_224
}

TEST(ModelConfig, ReportsWhatIsMissing) {
  expect_problem("size: S", "model.arch");
  expect_problem("arch: vit, depth: 2, heads: 3", "model.dim");
  expect_problem("arch: vit, dim: 12, heads: 3", "model.depth");
  expect_problem("arch: vit, dim: 12, depth: 2", "model.heads");
}

TEST(ModelConfig, ReportsWordsThatAreNotAllowed) {
  expect_problem("arch: vitt, size: S", "vit");
  expect_problem("arch: vit, size: XL, dim: 12, depth: 2, heads: 3", "model.size");
  expect_problem("arch: vit, size: S, pool: mean", "model.pool");
  expect_problem("arch: vit, size: S, head: 3", "heads");
}

TEST(ModelConfig, ReportsValuesThatDoNotFitTogether) {
  expect_problem("arch: vit, dim: 64, depth: 2, heads: 3", "3 heads do not divide dim 64");
  expect_problem("arch: vit, size: S, heads: 5", "5 heads do not divide dim 384");
  expect_problem("arch: vit, size: S, patch: 15", "patches of 15 do not divide images of 224");
  expect_problem("arch: vit, dim: 2, depth: 1, heads: 1, mlp_ratio: 0.1",
                 "dim * mlp_ratio must be at least 1");
}

TEST(ModelConfig, ReportsValuesOutOfRange) {
  for (const auto* wrong :
       {"dim: 0", "dim: 16385", "depth: 0", "depth: 257", "heads: 0", "heads: -1", "patch: 0", "image: 0",
        "channels: 0", "classes: 0", "mlp_ratio: 0", "drop_path: -0.1", "drop_path: 1.5"}) {
    const std::string text = wrong;
    expect_problem("arch: vit, size: S, " + text, "model." + text.substr(0, text.find(':')));
  }
  expect_problem("arch: vit, size: S, drop_path: 1", "drop_path must be below 1");
}

TEST(ModelConfig, RefusesModelsThatNobodyMeans) {
  expect_problem("arch: vit, size: S, image: 2048, patch: 1", "4194305 tokens; at most 16384");
  expect_problem("arch: vit, dim: 16384, depth: 256, heads: 128", "at most 2e+10 are supported");
}

}  // namespace
}  // namespace exfusion
