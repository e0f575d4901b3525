#include "prune/hf_layout.h"

#include <gtest/gtest.h>

#include "core/error.h"

namespace exfusion {
namespace {

const HfLayout& olmoe() {
  return hf_layout("olmoe", "config.json");
}

TEST(HfLayout, KnowsRoutersAndExpertsByName) {
  const auto router = expert_tensor(olmoe(), "model.layers.11.mlp.gate.weight", "f");
  ASSERT_TRUE(router);
  EXPECT_EQ(router->layer, 11);
  EXPECT_EQ(router->expert, -1);
  const auto expert =
      expert_tensor(hf_layout("mixtral", "f"), "model.layers.0.block_sparse_moe.experts.7.w2.weight", "f");
  ASSERT_TRUE(expert);
  EXPECT_EQ(expert->layer, 0);
  EXPECT_EQ(expert->expert, 7);
  EXPECT_EQ(expert->matrix, "w2");
}

TEST(HfLayout, LeavesEverythingElseAlone) {
  for (const char* name :
       {"lm_head.weight", "model.norm.weight", "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.shared_expert.up_proj.weight",
        "model.layers.0.mlp.shared_expert_gate.weight", "model.layers.", "model.layers.x.mlp.gate.weight",
        "model.layers.00.mlp.gate.weight", "model.layers.-1.mlp.gate.weight",
        "model.layers.12345678901234567890.mlp.gate.weight", "model.layers.0", ""})
    EXPECT_FALSE(expert_tensor(olmoe(), name, "f")) << name;
}

TEST(HfLayout, RefusesExpertsThatAreKeptOtherwise) {
  for (const char* name :
       {"model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.0.up_proj.weight_scale",
        "model.layers.0.mlp.experts.00.up_proj.weight", "model.layers.0.mlp.experts.-1.up_proj.weight",
        "model.layers.0.mlp.experts.0.w1.weight", "model.layers.0.mlp.experts.",
        "model.layers.0.mlp.gate.bias", "model.layers.0.mlp.gate.e_score_correction_bias"})
    EXPECT_THROW(expert_tensor(olmoe(), name, "f"), FormatError) << name;
  EXPECT_THROW(hf_layout("llama", "f"), FormatError);
}

TEST(HfLayout, WritesTheNamesThatItReads) {
  for (const char* name :
       {"model.layers.3.mlp.gate.weight", "model.layers.3.mlp.experts.12.down_proj.weight"})
    EXPECT_EQ(expert_tensor_name(olmoe(), *expert_tensor(olmoe(), name, "f")), name);
}

}  // namespace
}  // namespace exfusion
