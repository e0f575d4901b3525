#include "models/vit.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "models/model.h"
#include "nn/ffn.h"

namespace exfusion {
namespace {

ViTConfig small_config() {
  ViTConfig config;
  config.dim = 24;
  config.depth = 3;
  config.heads = 2;
  config.hidden = 60;
  config.patch = 7;
  config.image = 28;
  config.channels = 1;
  config.classes = 10;
  return config;
}

TEST(ViT, DrawsTheSameParametersFromTheSameSeed) {
  const auto first = make_vit(small_config(), 5), second = make_vit(small_config(), 5);
  const auto other = make_vit(small_config(), 6);
  for (const auto& item : first->named_parameters()) {
    EXPECT_TRUE(at::equal(item.value(), second->named_parameters()[item.key()])) << item.key();
    const bool constant =
        item.value().detach().std(0, false).abs().max().item<float>() == 0.0f && item.value().dim() == 1;
    EXPECT_EQ(at::equal(item.value(), other->named_parameters()[item.key()]), constant) << item.key();
  }
}

TEST(ViT, StartsWithDifferentValuesInEveryBlock) {
  const auto values = make_vit(small_config(), 5)->named_parameters();
  for (const auto* name : {"attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight"}) {
    EXPECT_FALSE(at::equal(values[std::string("blocks.0.") + name], values[std::string("blocks.1.") + name]))
        << name;
  }
}

TEST(ViT, ItsFfnsAreExpertZero) {
  const auto config = small_config();
  const auto ffns = find_ffns(*make_vit(config, 5));
  ASSERT_EQ(ffns.size(), 3U);
  for (std::size_t i = 0; i < ffns.size(); ++i) {
    EXPECT_EQ(ffns[i].name, "blocks." + std::to_string(i) + ".mlp");
    const auto expected = initial_ffn(config.dim, config.hidden, 5, static_cast<std::int64_t>(i), 0);
    for (std::size_t t = 0; t < 4; ++t)
      EXPECT_TRUE(at::equal(ffns[i].ffn->parameters_in_order()[t], expected[t]));
  }
}

TEST(ViT, DecaysMatricesOnly) {
  const auto model = make_vit(small_config(), 1);
  EXPECT_FALSE(model->decays("cls_token"));
  EXPECT_FALSE(model->decays("pos_embed"));
  EXPECT_TRUE(model->decays("patch_embed.proj.weight"));
  EXPECT_FALSE(model->decays("patch_embed.proj.bias"));
  EXPECT_FALSE(model->decays("blocks.0.norm1.weight"));
  EXPECT_TRUE(model->decays("blocks.0.attn.qkv.weight"));
  EXPECT_TRUE(model->decays("blocks.2.mlp.fc2.weight"));
  EXPECT_FALSE(model->decays("blocks.2.mlp.fc2.bias"));
  EXPECT_FALSE(model->decays("norm.weight"));
  EXPECT_TRUE(model->decays("head.weight"));
}

TEST(ViT, DropPathGrowsLinearlyOverTheBlocks) {
  auto config = small_config();
  config.drop_path = 0.2;
  EXPECT_EQ(make_vit(config, 1)->drop_path_rates(), (std::vector<double>{0.0, 0.0, 0.1, 0.1, 0.2, 0.2}));
  config.depth = 1;
  EXPECT_EQ(make_vit(config, 1)->drop_path_rates(), (std::vector<double>{0.0, 0.0}));
}

TEST(ViT, DropPathFactorsBelongToTheSample) {
  const auto model = make_vit(small_config(), 1);
  const at::NoGradGuard no_grad;
  for (auto& parameter : model->parameters()) parameter.normal_(0.0, 0.3);
  const auto images = at::randn({3, 1, 28, 28});
  auto factors = at::ones({3, 6});
  const auto plain = model->forward(images, {});
  EXPECT_TRUE(at::allclose(model->forward(images, factors), plain, 1e-4, 1e-5));
  factors[1][3] = 0.0;  // the second sample, the FFN of the second block
  const auto dropped = model->forward(images, factors);
  EXPECT_TRUE(at::allclose(dropped[0], plain[0], 1e-4, 1e-5));
  EXPECT_TRUE(at::allclose(dropped[2], plain[2], 1e-4, 1e-5));
  EXPECT_FALSE(at::allclose(dropped[1], plain[1], 1e-3, 1e-3));
}

TEST(ViT, CountsTheFlopsOfViTS16) {
  // By hand, in multiply-adds: 196 patches of 768 numbers to 384; 12 blocks of 197 tokens with qkv, proj,
  // fc1, fc2 (12 * 384^2 a token) and two attention products (197^2 * 384 each); 1000 classes. About 4.6 G,
  // the figure published for ViT-S/16.
  const double expected =
      196.0 * 768 * 384 + 12 * (197.0 * 12 * 384 * 384 + 2.0 * 197 * 197 * 384) + 384.0 * 1000;
  const auto flops = make_vit(ViTConfig{}, 1)->forward_flops();
  EXPECT_EQ(flops, 2 * expected);
  EXPECT_NEAR(flops, 9.2e9, 0.05e9);
}

TEST(ViT, RefusesImagesOfAnotherShape) {
  const auto model = make_vit(small_config(), 1);
  EXPECT_THROW(model->forward(at::zeros({2, 3, 28, 28}), {}), c10::Error);
  EXPECT_THROW(model->forward(at::zeros({2, 1, 28, 21}), {}), c10::Error);
  EXPECT_THROW(model->forward(at::zeros({1, 28, 28}), {}), c10::Error);
}

}  // namespace
}  // namespace exfusion
