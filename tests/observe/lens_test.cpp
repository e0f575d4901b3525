#include "observe/lens.h"

#include <algorithm>
#include <cmath>

#include "analysis/vectors.h"
#include "nn/ffn.h"
#include "observe/topk_trace.h"
#include "topk_models.h"

namespace exfusion {
namespace {

at::Tensor doubles(const analysis::json& values) {
  return at::tensor(analysis::numbers(values), at::kDouble);
}

TEST(OrthogonalCosine, OfThePublishedGates) {
  const auto one = analysis::vector_case("b5_cosine_null", "six_gates");
  const std::vector<double> weights = analysis::numbers(one.at("inputs").at("w"));
  std::vector<double> found;
  for (const double a : analysis::numbers(one.at("inputs").at("a_over_rho")))
    found.push_back(orthogonal_cosine(weights, std::vector<double>(6, a), 1.0));
  analysis::expect_key(one, "cos_with_residual", found);
  analysis::expect_key(one, "printed", found);
  analysis::expect_key(one, "cos_without_residual",
                       orthogonal_cosine(weights, std::vector<double>(6, 0.7), 0.0));
}

TEST(LensCosine, OfThePublishedVectors) {
  const auto one = analysis::vector_case("b5_cosine_null", "explicit_vectors");
  const auto& inputs = one.at("inputs");
  const at::Tensor f = at::tensor(analysis::table(inputs.at("experts")), at::kDouble).view({3, 4});
  const at::Tensor g = doubles(inputs.at("gates")).view({1, 3});
  const LensTokens tokens{f.narrow(0, 0, 1), g.mm(f), doubles(inputs.at("residual")).view({1, 4}),
                          f.norm(2, -1).view({1, 3}), g};
  const LensCosine found = lens_cosine(tokens);
  analysis::expect_key(one, "cos_without_residual", found.plain);
  analysis::expect_key(one, "cos_with_residual", found.residual);
}

double cosine(const at::Tensor& a, const at::Tensor& b) {
  return (a.dot(b) / (a.norm() * b.norm())).item<double>();
}

TEST(Lens, IsThatOfALoopOverTokens) {
  const ModelConfig config = topk_config(5, 3);
  const auto model = topk_model(config, 2);
  const std::vector<HeldOutBatch> batches = random_batches({4, 3});
  const std::vector<LensLayer> found = observe_lens(*model, {}, batches, kClasses);
  ASSERT_EQ(found.size(), 2u);
  const auto passes = ffn_passes(*model, batches);
  for (std::size_t l = 0; l < 2; ++l) {
    const SlowTensors t = slow_copies(*topk_ffn(*model, l));
    const at::NoGradGuard no_grad;
    LensCosine measured, unrelated;
    double tokens = 0.0, ratio = 0.0;
    for (const auto& pass : passes) {
      const at::Tensor x = pass[l].x.reshape({-1, 12}).to(at::kDouble);
      const at::Tensor u = pass[l].stream.reshape({-1, 12}).to(at::kDouble);
      const at::Tensor y = pass[l].y.reshape({-1, 12}).to(at::kDouble);
      for (std::int64_t i = 0; i < x.size(0); ++i, tokens += 1.0) {
        const at::Tensor p = t.at("router.weight").mv(x[i]).softmax(0);
        const auto [gates, experts] = p.topk(3);
        std::vector<double> weights, norms;
        for (std::int64_t k = 0; k < 3; ++k) {
          weights.push_back((gates[k] / gates.sum()).item<double>());
          norms.push_back(slow_expert(t, experts[k].item<std::int64_t>(), x[i]).norm().item<double>());
        }
        const at::Tensor f = slow_expert(t, experts[0].item<std::int64_t>(), x[i]);
        measured.plain += cosine(f, y[i]);
        measured.residual += cosine(u[i] + f, u[i] + y[i]);
        unrelated.plain += orthogonal_cosine(weights, norms, 0.0);
        unrelated.residual += orthogonal_cosine(weights, norms, u[i].norm().item<double>());
        ratio += (f.norm() / u[i].norm()).item<double>();
      }
    }
    EXPECT_EQ(found[l].block, static_cast<std::int64_t>(l));
    EXPECT_EQ(found[l].tokens, tokens);
    EXPECT_NEAR(found[l].cosine.plain, measured.plain / tokens, 1e-5);
    EXPECT_NEAR(found[l].cosine.residual, measured.residual / tokens, 1e-5);
    EXPECT_NEAR(found[l].unrelated.plain, unrelated.plain / tokens, 1e-5);
    EXPECT_NEAR(found[l].unrelated.residual, unrelated.residual / tokens, 1e-5);
    EXPECT_NEAR(found[l].output_ratio, ratio / tokens, 1e-4);
    EXPECT_LT(found[l].shuffled.plain, found[l].cosine.plain);
  }
}

// After the last block the lens on u + y is the model itself; on u + f, the model with that FFN's output.
TEST(Lens, OfTheLastBlockIsTheModelsOwnAnswer) {
  const auto model = topk_model(topk_config(4, 2), 5);
  const std::vector<HeldOutBatch> batches = random_batches({6});
  const LensLayer found = observe_lens(*model, {}, batches, kClasses).at(1);
  const at::NoGradGuard no_grad;
  model->eval();
  const at::Tensor all = model->forward(batches[0].images, {}).to(at::kDouble).log_softmax(1);
  at::Tensor one;
  {
    const ObservedBlocks observed(*model);
    observed.blocks()[1]->observe_ffn([&ffn = *topk_ffn(*model, 1)](const at::Tensor& x, const at::Tensor&) {
      const at::Tensor rows = x.reshape({-1, 12});
      return ffn.outputs(rows, ffn.router_logits(rows).argmax(1, /*keepdim=*/true)).view(x.sizes());
    });
    one = model->forward(batches[0].images, {}).to(at::kDouble).log_softmax(1);
  }
  EXPECT_NEAR(found.divergence, (all.exp() * (all - one)).sum().item<double>() / 6.0, 1e-5);
  EXPECT_NEAR(found.agreement, all.argmax(1).eq(one.argmax(1)).to(at::kDouble).mean().item<double>(), 1e-12);
  EXPECT_EQ(found.images, (std::vector<double>{2.0, 2.0, 2.0}));
  for (std::int64_t c = 0; c < kClasses; ++c) {
    const auto i = static_cast<std::size_t>(c);
    EXPECT_NEAR(found.label_ensemble[i], (all[c][c].exp() + all[c + 3][c].exp()).item<double>() / 2.0, 1e-5);
    EXPECT_NEAR(found.label_single[i], (one[c][c].exp() + one[c + 3][c].exp()).item<double>() / 2.0, 1e-5);
  }
}

TEST(Lens, OfCopiesIsOneAndZero) {
  const auto model = topk_model(topk_config(4, 2));
  for (std::size_t l = 0; l < 2; ++l) copy_first_expert(*topk_ffn(*model, l));
  for (const LensLayer& found : observe_lens(*model, {}, random_batches({4, 4}), kClasses)) {
    EXPECT_NEAR(found.cosine.plain, 1.0, 1e-6);
    EXPECT_NEAR(found.cosine.residual, 1.0, 1e-6);
    EXPECT_NEAR(found.divergence, 0.0, 1e-8);
    EXPECT_EQ(found.agreement, 1.0);
    EXPECT_LT(found.unrelated.plain, 0.95);
  }
}

TEST(Lens, OfUnrelatedExpertsIsTheClosedForm) {
  const auto model = topk_model(topk_config(4, 3));
  const auto ffn = topk_ffn(*model, 0);
  {
    const at::NoGradGuard no_grad;
    for (const at::Tensor& tensor : ffn->experts().tensors) tensor.zero_();
    for (std::int64_t k = 0; k < 4; ++k) ffn->experts().tensors[3][k][k] = 0.5 + static_cast<double>(k);
  }
  const LensLayer found = observe_lens(*model, {}, random_batches({4}), kClasses).at(0);
  EXPECT_NEAR(found.cosine.plain, found.unrelated.plain, 1e-6);
  EXPECT_LT(found.cosine.plain, 0.999);
}

// A dense model whose FFN of block 1 stands for three experts; the second has the largest weight.
TEST(Lens, OfAFusedSetIsItsStrongestExpertAgainstTheFusedFfn) {
  ModelConfig config = topk_config(4, 2);
  config.vit.ffn = FfnConfig{};
  const auto model = topk_model(config);
  FusedSet set;
  set.name = "blocks.1.mlp";
  set.block = 1;
  set.a = {0.2, 0.5, 0.3};
  set.experts = {random_values({3, 20, 12}, 31), random_values({3, 20}, 32), random_values({3, 12, 20}, 33),
                 random_values({3, 12}, 34)};
  const std::vector<HeldOutBatch> batches = random_batches({4, 3});
  const std::vector<LensLayer> layers = observe_lens(*model, {set}, batches, kClasses);
  ASSERT_EQ(layers.size(), 1u);
  const LensLayer& found = layers[0];
  EXPECT_TRUE(found.fused);
  EXPECT_EQ(found.block, 1);
  LensCosine measured, unrelated;
  double tokens = 0.0;
  for (const auto& pass : ffn_passes(*model, batches)) {
    const at::NoGradGuard no_grad;
    const at::Tensor x = pass[1].x.reshape({-1, 12}), u = pass[1].stream.reshape({-1, 12});
    const at::Tensor y = pass[1].y.reshape({-1, 12});
    std::vector<at::Tensor> f;
    for (std::int64_t k : {1, 0, 2}) {
      const at::Tensor hidden = at::gelu(at::linear(x, set.experts[0][k], set.experts[1][k]));
      f.push_back(at::linear(hidden, set.experts[2][k], set.experts[3][k]));
    }
    for (std::int64_t i = 0; i < x.size(0); ++i, tokens += 1.0) {
      measured.plain += cosine(f[0][i], y[i]);
      measured.residual += cosine(u[i] + f[0][i], u[i] + y[i]);
      unrelated.residual +=
          orthogonal_cosine(std::vector<double>{0.5, 0.2, 0.3},
                            std::vector<double>{f[0][i].norm().item<double>(), f[1][i].norm().item<double>(),
                                                f[2][i].norm().item<double>()},
                            u[i].norm().item<double>());
    }
  }
  EXPECT_NEAR(found.cosine.plain, measured.plain / tokens, 1e-5);
  EXPECT_NEAR(found.cosine.residual, measured.residual / tokens, 1e-5);
  EXPECT_NEAR(found.unrelated.residual, unrelated.residual / tokens, 1e-5);
}

SweepPoint evaluated(Model& model, const std::vector<HeldOutBatch>& batches) {
  const at::NoGradGuard no_grad;
  SweepPoint point;
  double images = 0.0;
  for (const HeldOutBatch& batch : batches) {
    const at::Tensor log_p = model.forward(batch.images, {}).log_softmax(1);
    for (std::int64_t i = 0; i < batch.labels.size(0); ++i, images += 1.0) {
      const std::int64_t label = batch.labels[i].item<std::int64_t>();
      point.loss -= log_p[i][label].item<double>();
      point.accuracy += log_p[i].argmax().item<std::int64_t>() == label ? 1.0 : 0.0;
    }
  }
  return {0, point.loss / images, point.accuracy / images};
}

TEST(GateSweep, OfCopiesChangesNothingRenormalisedAndScalesTheLayersOtherwise) {
  const auto model = topk_model(topk_config(6, 4));
  for (std::size_t l = 0; l < 2; ++l) copy_first_expert(*topk_ffn(*model, l));
  const std::vector<HeldOutBatch> batches = random_batches({4, 3});
  const GateSweep found = observe_gate_sweep(*model, batches);
  ASSERT_EQ(found.as_is.size(), 4u);
  const SweepPoint whole = evaluated(*model, batches);
  const ObservedBlocks observed(*model);
  for (std::int64_t k = 1; k <= 4; ++k) {
    const auto i = static_cast<std::size_t>(k - 1);
    EXPECT_EQ(found.as_is[i].experts, k);
    EXPECT_NEAR(found.renormalised[i].loss, whole.loss, 1e-5);
    EXPECT_EQ(found.renormalised[i].accuracy, whole.accuracy);
    for (std::size_t l = 0; l < 2; ++l) {
      observed.blocks()[l]->observe_ffn(
          [k, &ffn = *topk_ffn(*model, l)](const at::Tensor& x, const at::Tensor&) {
            const at::Tensor p = std::get<0>(ffn.router_logits(x).softmax(-1).topk(4, -1));
            const at::Tensor scale = p.narrow(-1, 0, k).sum(-1, true) / p.sum(-1, true);
            return scale * ffn.forward(x);
          });
    }
    EXPECT_NEAR(found.as_is[i].loss, evaluated(*model, batches).loss, 1e-5);
  }
  EXPECT_GT(std::abs(found.as_is[0].loss - whole.loss), 1e-3);
}

TEST(GateSweep, EndsAtTheModelItself) {
  const auto model = topk_model(topk_config(5, 3), 8);
  const std::vector<HeldOutBatch> batches = random_batches({5, 4});
  const GateSweep found = observe_gate_sweep(*model, batches);
  const SweepPoint whole = evaluated(*model, batches);
  for (const SweepPoint& last : {found.as_is.back(), found.renormalised.back()}) {
    EXPECT_NEAR(last.loss, whole.loss, 1e-5);
    EXPECT_EQ(last.accuracy, whole.accuracy);
  }
  EXPECT_GT(std::abs(found.renormalised[0].loss - whole.loss), 1e-4);
}

// The published gates as the shares that the k largest of six keep.
TEST(GateSweep, SharesOfThePublishedGates) {
  const auto one = analysis::vector_case("b6_topk_sweep", "identical_experts_gate_scale");
  const at::Tensor gates = doubles(one.at("inputs").at("gates_sorted"));
  const auto model = topk_model(topk_config(6, 6));
  const auto ffn = topk_ffn(*model, 0);
  copy_first_expert(*ffn);
  const at::NoGradGuard no_grad;
  const at::Tensor x = random_values({1, 12}, 3);
  ffn->router().weight.copy_(
      gates.log().unsqueeze(1).mul(x.to(at::kDouble)).div(x.square().sum().to(at::kDouble)));
  const TopkFfn::Routing routing = ffn->route(ffn->router_logits(x));
  const at::Tensor whole = ffn->combine(x, routing);
  std::vector<double> found;
  for (std::int64_t k = 1; k <= 6; ++k) {
    TopkFfn::Routing kept = routing;
    kept.chosen = kept.chosen.narrow(1, 0, k);
    kept.gates = kept.gates.narrow(1, 0, k);
    found.push_back((ffn->combine(x, kept).norm() / whole.norm()).item<double>());
  }
  analysis::expect_near(
      found, analysis::numbers(one.at("expected").at("layer_scale_without_renormalisation")), 1e-5);
}

}  // namespace
}  // namespace exfusion
