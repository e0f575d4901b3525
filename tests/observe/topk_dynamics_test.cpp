#include "observe/topk_dynamics.h"

#include <algorithm>
#include <cmath>

#include "analysis/vectors.h"
#include "core/random.h"
#include "topk_models.h"

namespace exfusion {
namespace {

TEST(TopkDynamics, ARouterOfEqualLogitsKnowsNothing) {
  const auto model = topk_model(topk_config(8, 2));
  const at::NoGradGuard no_grad;
  for (std::size_t l = 0; l < 2; ++l) topk_ffn(*model, l)->router().weight.zero_();
  const TopkObservation of = observe_topk(*model, random_batches({4, 4}), kClasses, false);
  const TopkDynamics found = topk_dynamics(of, 0, {});
  EXPECT_NEAR(found.mean_entropy, std::log(8.0), 1e-12);
  EXPECT_NEAR(found.entropy_of_mean, std::log(8.0), 1e-12);
  EXPECT_NEAR(found.information, 0.0, 1e-12);
  EXPECT_NEAR(found.balance_loss, 1.0, 1e-12);
  EXPECT_NEAR(found.z_loss, std::log(8.0) * std::log(8.0), 1e-12);
  EXPECT_NEAR(found.logit_sd.value, 0.0, 1e-12);
  EXPECT_NEAR(found.max_violation, 3.0, 1e-12);  // ties go to experts 0 and 1
  EXPECT_EQ(found.dead, 6u);
  EXPECT_EQ(found.saturation.reason, "no earlier observation");
  EXPECT_EQ(found.saturation_chance, 0.25);
}

TEST(TopkDynamics, EntropiesAndLossesAreThoseOfALoopOverTokens) {
  const auto model = topk_model(topk_config(5, 2), 4);
  const std::vector<HeldOutBatch> batches = random_batches({3, 4});
  const TopkObservation of = observe_topk(*model, batches, kClasses, false);
  const auto passes = ffn_passes(*model, batches);
  for (std::size_t l = 0; l < 2; ++l) {
    const at::Tensor weight = topk_ffn(*model, l)->router().weight.detach().to(at::kDouble);
    double entropy = 0.0, z_loss = 0.0, tokens = 0.0;
    at::Tensor mean = at::zeros({5}, at::kDouble), load = at::zeros({5}, at::kDouble);
    for (const auto& pass : passes) {
      const at::Tensor x = pass[l].x.to(at::kDouble).reshape({-1, 12});
      for (std::int64_t i = 0; i < x.size(0); ++i, tokens += 1.0) {
        const at::Tensor e = weight.mv(x[i]).exp(), p = e / e.sum();
        entropy -= (p * p.log()).sum().item<double>();
        z_loss += e.sum().log().square().item<double>();
        mean += p;
        const at::Tensor order = p.argsort(/*dim=*/0, /*descending=*/true);
        load[order[0].item<std::int64_t>()] += 1.0;
        load[order[1].item<std::int64_t>()] += 1.0;
      }
    }
    mean /= tokens;
    const TopkDynamics found = topk_dynamics(of, l, {});
    EXPECT_NEAR(found.mean_entropy, entropy / tokens, 1e-5);
    EXPECT_NEAR(found.entropy_of_mean, -(mean * mean.log()).sum().item<double>(), 1e-5);
    EXPECT_NEAR(found.information, found.entropy_of_mean - found.mean_entropy, 1e-12);
    EXPECT_GT(found.information, 0.0);
    EXPECT_NEAR(found.z_loss, z_loss / tokens, 1e-4);
    EXPECT_NEAR(found.balance_loss, 5.0 * (load / (2.0 * tokens) * mean).sum().item<double>(), 1e-5);
    EXPECT_NEAR(found.max_violation, load.max().item<double>() / (2.0 * tokens / 5.0) - 1.0, 1e-12);
  }
}

// A layer of M experts whose sampled tokens take these routes.
TopkObservation routed(std::vector<std::uint32_t> routes, std::size_t experts, std::size_t top_k) {
  TopkObservation of;
  of.trace.experts = experts;
  of.trace.top_k = top_k;
  analysis::TraceLayer layer;
  const std::size_t tokens = routes.size() / top_k;
  layer.tokens = {static_cast<double>(tokens)};
  layer.count.assign(experts, 0.0);
  for (const std::uint32_t e : routes) layer.count[e] += 1.0;
  layer.sum_prob.assign(experts, static_cast<double>(tokens) / static_cast<double>(experts));
  of.trace.layers.push_back(layer);
  of.sums.emplace_back();
  of.sums[0].tokens = static_cast<double>(tokens);
  of.sums[0].routes = std::move(routes);
  return of;
}

// Two of eight for each of 2000 tokens: `paired`, experts 2j and 2j + 1 together; else any two.
std::vector<std::uint32_t> pairs(bool paired, std::uint32_t seed) {
  CounterRandom random(seed, Draw::synthetic, 3);
  std::vector<std::uint32_t> routes;
  for (int t = 0; t < 2000; ++t) {
    const std::uint32_t first = random.below(8);
    std::uint32_t second = paired ? first ^ 1u : random.below(7);
    if (!paired && second >= first) ++second;
    routes.insert(routes.end(), {first, second});
  }
  return routes;
}

TEST(Saturation, IsOneForTheSameRoutesAndChanceForUnrelatedOnes) {
  const TopkObservation now = routed(pairs(false, 1), 8, 2);
  EXPECT_EQ(topk_dynamics(now, 0, now.sums[0].routes).saturation.value, 1.0);
  std::vector<std::uint32_t> swapped = now.sums[0].routes;
  for (std::size_t t = 0; t < swapped.size(); t += 2) std::swap(swapped[t], swapped[t + 1]);
  EXPECT_EQ(topk_dynamics(now, 0, swapped).saturation.value, 1.0);  // sets, not orders
  const TopkDynamics unrelated = topk_dynamics(now, 0, pairs(false, 2));
  EXPECT_NEAR(unrelated.saturation.value, unrelated.saturation_chance, 0.03);
  swapped.resize(10);
  EXPECT_EQ(topk_dynamics(now, 0, swapped).saturation.reason, "the earlier observation is of other tokens");
}

TEST(Coactivation, ChosenPartnersAreFoundAndUnrelatedOnesAreNot) {
  const analysis::NullComparison found = topk_dynamics(routed(pairs(true, 1), 8, 2), 0, {}).coactivation;
  EXPECT_GT(found.z.value, 10.0);
  EXPECT_NEAR(found.measured.value, 1.0 - 4.0 / 28.0, 0.02);  // 4 of 28 equally loaded pairs
  for (std::uint32_t seed = 0; seed < 10; ++seed) {
    const auto unrelated = topk_dynamics(routed(pairs(false, seed), 8, 2), 0, {}).coactivation;
    EXPECT_LT(std::abs(unrelated.z.value), 4.0) << seed;
  }
  EXPECT_EQ(topk_dynamics(routed(std::vector<std::uint32_t>(50, 1), 8, 1), 0, {}).coactivation.z.reason,
            "a token selects a single expert");
  EXPECT_EQ(topk_dynamics(routed({0, 1, 1, 0, 0, 1}, 2, 2), 0, {}).coactivation.z.reason,
            "the null does not vary");
}

TEST(ExpertRedundancy, IsThatOfALoopOverTokensAndExperts) {
  const auto model = topk_model(topk_config(3, 2));
  const TopkObservation of = observe_topk(*model, random_batches({5}), kClasses, false);
  const std::vector<ExpertRedundancy> found = expert_redundancy(*model, of.trace);
  ASSERT_EQ(found.size(), 2u);
  const auto ffn = topk_ffn(*model, 1);
  const SlowTensors t = slow_copies(*ffn);
  const at::Tensor x = at::tensor(of.trace.layers[1].hidden).view({-1, 12});
  const at::NoGradGuard no_grad;
  const at::Tensor y = ffn->forward(x.unsqueeze(0))[0];
  double spread = 0.0, size = 0.0;
  for (std::int64_t i = 0; i < x.size(0); ++i) {
    std::vector<at::Tensor> f;
    for (std::int64_t k = 0; k < 3; ++k) f.push_back(slow_expert(t, k, x[i].to(at::kDouble)));
    const at::Tensor mean = (f[0] + f[1] + f[2]) / 3.0;
    for (const at::Tensor& one : f) spread += (one - mean).square().sum().item<double>() / 3.0;
    size += y[i].to(at::kDouble).square().sum().item<double>();
  }
  EXPECT_NEAR(found[1].functional_diversity, std::sqrt(spread / size), 1e-5);
  const auto flat = [&](std::int64_t k) {
    return at::cat({t.at("experts.fc1.weight")[k].flatten(), t.at("experts.fc2.weight")[k].flatten()});
  };
  const at::Tensor mean = (flat(0) + flat(1) + flat(2)) / 3.0;
  const auto cosine = [](const at::Tensor& a, const at::Tensor& b) {
    return (a.dot(b) / (a.norm() * b.norm())).item<double>();
  };
  EXPECT_NEAR(found[1].weight_cosine[0 * 3 + 2], cosine(flat(0), flat(2)), 1e-10);
  EXPECT_NEAR(found[1].offset_cosine[2 * 3 + 1], cosine(flat(2) - mean, flat(1) - mean), 1e-10);
  EXPECT_NEAR(found[1].weight_cosine[4], 1.0, 1e-12);
}

TEST(ExpertRedundancy, CopiesAreOneExpert) {
  const auto model = topk_model(topk_config(4, 2));
  copy_first_expert(*topk_ffn(*model, 0));
  const TopkObservation of = observe_topk(*model, random_batches({5}), kClasses, false);
  const ExpertRedundancy found = expert_redundancy(*model, of.trace)[0];
  EXPECT_LT(found.functional_diversity, 1e-7);
  for (const double one : found.weight_cosine) EXPECT_NEAR(one, 1.0, 1e-12);
  EXPECT_TRUE(std::isnan(found.offset_cosine[1]));
}

}  // namespace
}  // namespace exfusion
