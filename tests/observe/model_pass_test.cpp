#include "observe/model_pass.h"

#include <algorithm>
#include <cmath>

#include "observe/observation.h"
#include "topk_models.h"

namespace exfusion {
namespace {

double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

TEST(ModelPass, SeesWhatTheModelComputes) {
  const auto model = topk_model(topk_config(5, 2));
  const HeldOutBatch batch = random_batches({6})[0];
  const ModelPass pass = pass_through(*model, batch, /*gradients=*/true);
  const auto expected = ffn_passes(*model, {batch})[0];
  ASSERT_EQ(pass.blocks.size(), 2u);
  for (std::size_t l = 0; l < 2; ++l) {
    const BlockPass& one = pass.of_block(static_cast<std::int64_t>(l));
    EXPECT_LT(largest_difference(one.x, expected[l].x), 1e-5);
    EXPECT_LT(largest_difference(one.stream, expected[l].stream), 1e-5);
    EXPECT_LT(largest_difference(one.y, expected[l].y), 1e-5);
    EXPECT_FALSE(one.y.requires_grad() || one.outputs.requires_grad() || one.x.requires_grad());
    EXPECT_EQ(one.tokens.parts.size(), 5u);
  }
  const ObservedBlocks evaluating(*model);
  const at::NoGradGuard no_grad;
  EXPECT_LT(largest_difference(pass.logits, model->forward(batch.images, {})), 1e-5);
  EXPECT_THROW(pass.of_block(2), std::out_of_range);
}

// The gradient by one layer's output: that of a loss which sees it as the input of the rest.
TEST(ModelPass, HasTheGradientOfEachLayersOutput) {
  const auto model = topk_model(topk_config(4, 2));
  const HeldOutBatch batch = random_batches({3})[0];
  const ModelPass pass = pass_through(*model, batch, /*gradients=*/true);
  const at::Tensor gradient = pass.of_block(0).gradient.view_as(pass.of_block(0).y);
  const at::Tensor direction = random_values(gradient.sizes(), 9);
  const auto loss = [&](double step) {
    const at::NoGradGuard no_grad;
    const ObservedBlocks observed(*model);
    observed.blocks()[0]->observe_ffn([&](const at::Tensor& x, const at::Tensor&) {
      return topk_ffn(*model, 0)->forward(x) + step * direction;
    });
    const at::Tensor logits = model->forward(batch.images, {}).to(at::kDouble);
    return at::cross_entropy_loss(logits, batch.labels, {}, at::Reduction::Sum).item<double>();
  };
  const double slope = (loss(2e-3) - loss(-2e-3)) / 4e-3;
  EXPECT_NEAR((gradient * direction).sum().item<double>(), slope, 2e-2 * std::abs(slope));
}

TEST(ModelPass, ExpertOutputsAreThoseOfTheFfn) {
  const auto model = topk_model(topk_config(6, 3));
  const TopkFfn& ffn = *topk_ffn(*model, 1);
  const at::NoGradGuard no_grad;
  const at::Tensor x = random_values({17, 12}, 4);
  at::Tensor chosen = ffn.route(ffn.router_logits(x)).chosen;
  EXPECT_LT(largest_difference(expert_outputs(ffn, x, chosen), ffn.outputs(x, chosen)), 1e-5);
  chosen = at::full({17, 1}, 5, at::kLong);  // nobody comes to the others
  EXPECT_LT(largest_difference(expert_outputs(ffn, x, chosen), ffn.outputs(x, chosen)), 1e-5);
}

// A pass is shared by all groups: none may change what another sees.
TEST(ModelPass, AGroupSaysTheSameAloneAndBesideOthers) {
  const auto model = topk_model(topk_config(5, 2));
  const std::vector<HeldOutBatch> batches = random_batches({6, 5});
  const auto together =
      observe_model(*model, {}, batches, AnalysisConfig{.groups = analysis_group_names()}, {2, kClasses});
  std::size_t seen = 0;
  for (const std::string& name : analysis_group_names()) {
    for (const ObservedGroup& alone :
         observe_model(*model, {}, batches, AnalysisConfig{.groups = {name}}, {2, kClasses})) {
      const auto found = std::ranges::find(together, alone.path, &ObservedGroup::path);
      ASSERT_NE(found, together.end()) << alone.path;
      for (std::size_t c = 0; c < alone.columns.size(); ++c) {
        const auto &one = alone.columns[c].values, &other = found->columns[c].values;
        for (std::size_t i = 0; i < one.size(); ++i) {
          if (std::isnan(one[i]) && std::isnan(other[i])) continue;
          EXPECT_NEAR(one[i], other[i], 1e-5 * std::max(1.0, std::abs(one[i])))
              << alone.path << "/" << alone.columns[c].name;
        }
      }
      ++seen;
    }
  }
  EXPECT_EQ(seen, together.size());
}

}  // namespace
}  // namespace exfusion
