#include "nn/block.h"

#include <gtest/gtest.h>

#include "module_values.h"
#include "nn/ffn.h"

namespace exfusion {
namespace {

TEST(Block, HasTimmsParametersInTimmsOrder) {
  const Block block(8, 2, std::make_shared<Ffn>(8, 20));
  EXPECT_EQ(block.named_parameters().keys(),
            (std::vector<std::string>{"norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias",
                                      "attn.proj.weight", "attn.proj.bias", "norm2.weight", "norm2.bias",
                                      "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"}));
}

at::Tensor output(Block& block, const at::Tensor& x, const at::Tensor& attention_factor,
                  const at::Tensor& ffn_factor) {
  return add_branch(block.forward({x, {}, {}}, attention_factor, ffn_factor));
}

TEST(Block, WithBothBranchesDroppedIsTheIdentity) {
  Block block(8, 2, std::make_shared<Ffn>(8, 20));
  set_random_values(block, 1);
  const auto x = random_values({3, 4, 8}, 2);
  EXPECT_TRUE(at::equal(output(block, x, at::zeros({3}), at::zeros({3})), x));
}

TEST(Block, WithFactorsOfOneIsTheBlockWithoutDropPath) {
  Block block(8, 2, std::make_shared<Ffn>(8, 20));
  set_random_values(block, 3);
  const auto x = random_values({3, 4, 8}, 4);
  EXPECT_LT(largest_difference(output(block, x, at::ones({3}), at::ones({3})), output(block, x, {}, {})),
            1e-6);
}

TEST(Block, TakesTheFirstFactorForAttentionAndTheSecondForTheFfn) {
  Block block(8, 2, std::make_shared<Ffn>(8, 20));
  set_random_values(block, 5);
  const auto x = random_values({1, 4, 8}, 6);
  const auto attention_only = output(block, x, at::ones({1}), at::zeros({1}));
  const auto ffn_only = output(block, x, at::zeros({1}), at::ones({1}));
  for (auto& item : block.named_parameters()) {
    if (item.key().starts_with("mlp.fc2")) item.value().detach().zero_();
  }
  EXPECT_LT(largest_difference(output(block, x, {}, {}), attention_only), 1e-6);
  EXPECT_GT(largest_difference(ffn_only, x), 0.01);
}

}  // namespace
}  // namespace exfusion
