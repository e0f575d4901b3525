// Vision transformers whose FFNs hold experts (`model.ffn`).
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "core/recipe.h"
#include "models/model.h"
#include "models/timm_export.h"
#include "models/timm_import.h"
#include "nn/ffn.h"

namespace exfusion {
namespace {

ModelConfig parse_ffn(const std::string& ffn) {
  auto recipe = Recipe::parse(
      "model: {arch: vit, dim: 12, depth: 3, heads: 3, patch: 7, image: 14, channels: 1, "
      "classes: 5, ffn: " +
          ffn + "}\n",
      "r.yaml");
  const auto config = ModelConfig::parse(recipe.root().child("model"));
  recipe.finish();
  return config;
}

const std::vector<std::string> kKinds = {
    "none",
    "{name: dense}",
    "{name: topk, experts: 5, layers: last:2}",
    "{name: topk, bias_balance: 0.1, layers: every:2}",
    "{name: smear}",
    "{name: ewa, experts: 3, layers: [0, 2]}",
};

at::Tensor images() {
  return at::linspace(-1, 1, 2 * 14 * 14).view({2, 1, 14, 14});
}

double file_numbers(const Model& model) {
  double count = 0;
  for (const auto& [name, tensor] : model_tensors(model)) count += static_cast<double>(tensor.numel());
  return count;
}

// Differences that training would make, so that no expert equals another.
void disturb(Model& model) {
  const at::NoGradGuard no_grad;
  auto generator = at::detail::createCPUGenerator(1);
  for (auto& [name, tensor] : model_tensors(model)) tensor.add_(at::randn(tensor.sizes(), generator), 0.1);
}

TEST(ExpertModels, TheirNumbersAreCountedBeforeTheyAreBuilt) {
  for (const std::string& ffn : kKinds) {
    const ModelConfig config = parse_ffn(ffn);
    EXPECT_EQ(config.vit.parameter_count(), file_numbers(*make_model(config, 1))) << ffn;
  }
}

TEST(ExpertModels, AnAbsurdNumberOfExpertsIsRefusedByTheRecipe) {
  auto recipe = Recipe::parse("model: {arch: vit, size: L, ffn: {name: topk, experts: 256}}", "r.yaml");
  ModelConfig::parse(recipe.root().child("model"));
  EXPECT_THROW(recipe.finish(), RecipeError);
}

TEST(ExpertModels, ChosenBlocksHoldExpertsAndTheOthersAreDense) {
  const auto names = make_model(parse_ffn("{name: topk, layers: last:1, bias_balance: 0.1}"), 1);
  const auto parameters = names->named_parameters();
  EXPECT_TRUE(parameters.contains("blocks.1.mlp.fc1.weight"));
  EXPECT_FALSE(parameters.contains("blocks.1.mlp.router.weight"));
  EXPECT_FALSE(parameters.contains("blocks.2.mlp.fc1.weight"));
  EXPECT_EQ(parameters["blocks.2.mlp.router.weight"].sizes(), (at::IntArrayRef{4, 12}));
  EXPECT_EQ(parameters["blocks.2.mlp.experts.fc1.weight"].sizes(), (at::IntArrayRef{4, 48, 12}));
  EXPECT_EQ(parameters["blocks.2.mlp.experts.fc2.bias"].sizes(), (at::IntArrayRef{4, 12}));
  EXPECT_EQ(model_tensors(*names).back().first, "blocks.2.mlp.selection_bias");
}

TEST(ExpertModels, ADenseSectionIsTheModelWithoutOne) {
  const auto one = make_model(parse_ffn("none"), 3), two = make_model(parse_ffn("{name: dense}"), 3);
  const auto expected = model_tensors(*one), found = model_tensors(*two);
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    EXPECT_EQ(found[i].first, expected[i].first);
    EXPECT_TRUE(at::equal(found[i].second, expected[i].second)) << found[i].first;
  }
}

TEST(ExpertModels, StartFromTheDenseModelsValuesWithExpertZeroAtTheFfns) {
  const auto dense = make_model(parse_ffn("none"), 3)->named_parameters();
  for (const char* ffn : {"{name: topk}", "{name: smear}", "{name: ewa}"}) {
    const auto model = make_model(parse_ffn(ffn), 3)->named_parameters();
    for (const auto& item : dense) {
      const std::string& name = item.key();
      const auto mlp = name.find(".mlp.");
      const at::Tensor found = mlp == std::string::npos
                                   ? model[name]
                                   : model[name.substr(0, mlp) + ".mlp.experts." + name.substr(mlp + 5)][0];
      EXPECT_TRUE(at::equal(found, item.value())) << ffn << " " << name;
    }
    const auto experts = model["blocks.1.mlp.experts.fc1.weight"];
    EXPECT_FALSE(at::equal(experts[0], experts[1]));
  }
  const auto routers = make_model(parse_ffn("{name: topk}"), 3)->named_parameters();
  EXPECT_FALSE(at::equal(routers["blocks.0.mlp.router.weight"], routers["blocks.1.mlp.router.weight"]));
  EXPECT_NEAR(routers["blocks.0.mlp.router.weight"].std().item<double>(), 0.02, 0.006);
}

TEST(ExpertModels, MatricesDecayAndStackedBiasesDoNot) {
  const auto model = make_model(parse_ffn("{name: topk}"), 3);
  EXPECT_TRUE(model->decays("blocks.0.mlp.experts.fc1.weight"));
  EXPECT_TRUE(model->decays("blocks.0.mlp.experts.fc2.weight"));
  EXPECT_TRUE(model->decays("blocks.0.mlp.router.weight"));
  EXPECT_FALSE(model->decays("blocks.0.mlp.experts.fc1.bias"));
  EXPECT_FALSE(model->decays("blocks.0.mlp.experts.fc2.bias"));
}

// 5 tokens of width 12, hidden 48.
TEST(ExpertModels, CountFlopsInTrainingAndDeployed) {
  const double dense = make_model(parse_ffn("none"), 1)->forward_flops(), ffn = 5 * 2 * 2 * 12 * 48;
  const auto ewa = make_model(parse_ffn("{name: ewa}"), 1);
  EXPECT_EQ(ewa->forward_flops(), dense);
  const auto topk = make_model(parse_ffn("{name: topk, top_k: 2, layers: last:2}"), 1);
  EXPECT_EQ(topk->forward_flops(), dense + 2 * (ffn + 5 * 2 * 4 * 12));
  const auto smear = make_model(parse_ffn("{name: smear}"), 1);
  EXPECT_EQ(smear->forward_flops(), dense + 3 * (2 * 4 * 12 + 2 * 4 * (2 * 12 * 48 + 48 + 12)));
}

TEST(DenseModel, OfAveragedExpertsGivesTheSameLogitsBitForBit) {
  for (const char* ffn : {"{name: ewa}", "{name: ewa, experts: 3, layers: [0, 2]}"}) {
    const ModelConfig config = parse_ffn(ffn);
    const auto model = make_model(config, 3);
    disturb(*model);
    model->eval();
    const auto dense = dense_model(model, config);
    ASSERT_TRUE(dense);
    EXPECT_EQ(dense_config(config).vit.ffn.name, "dense");
    EXPECT_EQ(dense->named_parameters().keys(), make_model(parse_ffn("none"), 0)->named_parameters().keys());
    EXPECT_TRUE(at::equal(dense->forward(images(), {}), model->forward(images(), {}))) << ffn;
    model->train();
    EXPECT_FALSE(at::equal(dense->forward(images(), {}), model->forward(images(), {}))) << ffn;
  }
}

TEST(DenseModel, OfADenseModelIsItself) {
  const ModelConfig config = parse_ffn("none");
  const auto model = make_model(config, 3);
  EXPECT_EQ(dense_model(model, config), model);
}

TEST(DenseModel, OfARoutedModelDoesNotExist) {
  for (const char* ffn : {"{name: topk, layers: last:1}", "{name: smear}"})
    EXPECT_FALSE(dense_model(make_model(parse_ffn(ffn), 3), parse_ffn(ffn))) << ffn;
}

TEST(TimmConfig, CarriesTheFfnThereAndBack) {
  for (const std::string& ffn : kKinds) {
    const ModelConfig config = parse_ffn(ffn);
    const std::string json = timm_config_json(config.vit, {0.5}, {0.25});
    const FfnConfig found = parse_timm_config(json, "config.json").vit.ffn;
    EXPECT_EQ(found.name, config.vit.ffn.name);
    EXPECT_EQ(found.experts, config.vit.ffn.experts);
    EXPECT_EQ(found.layers, config.vit.ffn.layers);
    EXPECT_EQ(found.top_k, config.vit.ffn.top_k);
    EXPECT_EQ(found.bias_balance, config.vit.ffn.bias_balance);
    const bool dense = config.vit.ffn.name == "dense";
    EXPECT_EQ(json.find("exfusion") == std::string::npos, dense) << json;
    EXPECT_EQ(json.find("vit_base_patch16_224") != std::string::npos, dense) << json;
  }
  const ModelConfig plain = parse_ffn("{name: topk, renormalize: false}");
  EXPECT_FALSE(
      parse_timm_config(timm_config_json(plain.vit, {0.5}, {0.5}), "config.json").vit.ffn.renormalize);
}

TEST(TimmConfig, AnFfnThatIsNoneIsRefused) {
  const std::string json = timm_config_json(parse_ffn("{name: topk}").vit, {0.5}, {0.5});
  const std::string section = json.substr(
      json.find("\"ffn\": {"), json.find('}', json.find("\"ffn\": {")) - json.find("\"ffn\": {") + 1);
  for (const char* wrong :
       {"\"ffn\": 7", "\"ffn\": null", "\"ffn\": []", "\"ffn\": {\"name\": \"moe\"}", "\"other\": {}",
        "\"ffn\": {\"name\": \"topk\", \"experts\": 1000000000}", "\"ffn\": {\"name\": [1, {\"a\": 2}]}",
        "\"ffn\": {\"name\": \"topk\", \"layers\": [\"9\"]}", "\"ffn\": {\"name\": \"topk\", \"top_k\": 9}",
        "\"ffn\": {\"name\": \"topk\", \"a: {b\": 1}", "\"ffn\": {\"name\": \"topk}, dim: 99, x: {y\"}"}) {
    std::string damaged = json;
    damaged.replace(json.find(section), section.size(), wrong);
    EXPECT_THROW(parse_timm_config(damaged, "config.json"), FormatError) << wrong;
  }
}

}  // namespace
}  // namespace exfusion
