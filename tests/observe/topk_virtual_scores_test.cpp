#include "observe/topk_virtual_scores.h"

#include <ATen/ATen.h>

#include <cmath>

#include "observe/intervention.h"
#include "observe/topk_routes.h"
#include "topk_models.h"

namespace exfusion {
namespace {

double loss_sum(Model& model, const HeldOutBatch& batch) {
  return at::cross_entropy_loss(model.forward(batch.images, {}).to(at::kDouble), batch.labels, {},
                                at::Reduction::Sum)
      .item<double>();
}

// The loss if the last layer gave y + step (f_k - y) on every token; behind others, a step may change routes.
TEST(TopkVirtualScores, AddUpToTheDerivativeOfTheLossTowardsTheExpert) {
  const auto model = topk_model(topk_config(4, 2));
  const auto batches = random_batches({6, 5});
  const auto found = observe_topk_scores(*model, batches, kClasses);
  ASSERT_EQ(found.size(), 2u);
  const at::NoGradGuard no_grad;
  const TopkVirtualScores& layer = found[1];
  EXPECT_EQ(layer.block, 1);
  const ObservedBlocks observed(*model);
  const auto& block = observed.blocks()[1];
  const auto ffn = topk_ffn(*model, 1);
  for (std::size_t b = 0; b < 2; ++b) {
    for (std::int64_t k = 0; k < 4; ++k) {
      const auto loss_at = [&](double step) {
        block->observe_ffn([&](const at::Tensor& x, const at::Tensor&) {
          const at::Tensor rows = x.reshape({-1, x.size(-1)}), y = ffn->forward(x);
          const at::Tensor f = ffn->outputs(rows, at::full({rows.size(0), 1}, k, at::kLong));
          return y + step * (f.view(x.sizes()) - y);
        });
        return loss_sum(*model, batches[b]);
      };
      const double slope = (loss_at(0.01) - loss_at(-0.01)) / 0.02;
      EXPECT_NEAR(layer.scores.score[b * 4 + static_cast<std::size_t>(k)], -slope,
                  2e-3 * std::max(1.0, std::abs(slope)));
      EXPECT_GT(std::abs(slope), 1e-3);
    }
  }
}

TEST(TopkVirtualScores, OfTheChosenExpertsCancelWithTheirGates) {
  const auto model = topk_model(topk_config(5, 3));
  const auto batches = random_batches({4});
  const std::vector<TopkBlock> blocks = topk_blocks(find_blocks(*model));
  const std::vector<TopkPass> passes = topk_passes(*model, blocks, batches[0]);
  const at::NoGradGuard no_grad;
  for (std::size_t l = 0; l < passes.size(); ++l) {
    const at::Tensor rows = passes[l].x.reshape({-1, passes[l].x.size(-1)});
    const at::Tensor scores =
        output_scores(blocks[l].ffn->outputs(rows, passes[l].routing.chosen), passes[l].y, passes[l].delta)
            .scores;
    const at::Tensor sum = (scores * passes[l].routing.gates).sum(1);
    EXPECT_LT((sum.abs().max() / scores.abs().max()).item<double>(), 1e-4);
  }
}

TEST(TopkVirtualScores, OfCopiesAreTiesAndChangeNothing) {
  const auto model = topk_model(topk_config(4, 2));
  for (const std::size_t block : {0u, 1u}) copy_first_expert(*topk_ffn(*model, block));
  const auto batches = random_batches({6, 5});
  for (const TopkVirtualScores& layer : observe_topk_scores(*model, batches, kClasses)) {
    EXPECT_EQ(layer.scores.ties, layer.scores.tokens);
    EXPECT_EQ(layer.agreement.preferring, (std::vector<double>{0, 0}));
    EXPECT_TRUE(std::isnan(layer.scores.nmi));
  }
  for (const RouteChanges& layer : change_routes(*model, batches, unchanged_model(*model, batches, kClasses)))
    for (const auto* sums : {&layer.random, &layer.oracle})
      for (const double one : sums->loss) EXPECT_NEAR(one, 0.0, 2e-5);
}

TEST(RouterAgreement, IsCountedOverTokensWithAPreference) {
  // Experts 0..2; class 0 mostly goes to expert 1, class 1 to expert 2.
  const at::Tensor preferred = at::tensor({1, 0, -1, 2, 0}, at::kLong),
                   chosen = at::tensor({1, 0, 1, 0, 1, 2, 2, 1, 2, 0}, at::kLong).view({5, 2}),
                   label = at::tensor({0, 0, 0, 1, 1}, at::kLong),
                   batch = at::tensor({0, 0, 1, 1, 1}, at::kLong);
  const RouterAgreement found = router_agreement(preferred, chosen, label, batch, 3, 2, 2);
  EXPECT_EQ(found.preferring, (std::vector<double>{2, 2}));
  EXPECT_EQ(found.first, (std::vector<double>{1, 1}));
  EXPECT_EQ(found.chosen, (std::vector<double>{2, 2}));
  EXPECT_EQ(found.majority, (std::vector<double>{1, 1}));
  // Preferred: 1/2, 1/4, 1/4; first choices of the same tokens: 0, 1/2, 1/2.
  EXPECT_NEAR(found.independent, 0.25, 1e-12);
}

// Experts near each other: a first-order choice is as good as it says.
TEST(ChangeRoutes, ScoredOnesLowerTheLossAndRandomOnesDoNot) {
  const auto model = topk_model(topk_config(6, 2));
  for (const std::size_t block : {0u, 1u}) {
    const at::NoGradGuard no_grad;
    for (const at::Tensor& tensor : topk_ffn(*model, block)->experts().tensors) {
      const at::Tensor first = tensor.select(0, 0).clone();
      tensor.copy_(first + 0.05 * (tensor - first));
    }
  }
  const auto batches = random_batches({9, 9, 9});
  const auto held_out = unchanged_model(*model, batches, kClasses);
  const std::vector<double> all(3, 1.0);
  for (const RouteChanges& layer : change_routes(*model, batches, held_out)) {
    const double oracle = mean_loss(held_out, layer.oracle, all),
                 random = mean_loss(held_out, layer.random, all);
    EXPECT_LT(oracle, -1e-4);
    EXPECT_LT(oracle, random - 1e-4);
    EXPECT_NE(random, 0.0);
  }
}

}  // namespace
}  // namespace exfusion
