#include "observe/topk_trace.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "analysis/analysis.h"
#include "analysis/probe.h"
#include "analysis/report.h"
#include "analysis/vectors.h"
#include "support/test_folder.h"
#include "topk_models.h"

namespace exfusion {
namespace {

using analysis::expect_near;
using analysis::TraceLayer;

// The sums of one layer, token by token in double precision.
struct SlowSums {
  std::vector<double> n, g1, a1, a2, ga, ga2, r;  // [rows, M]
  std::vector<double> prob, logit, logit_sq;      // [B, M]
  double entropy = 0.0, log_sum_exp_sq = 0.0;
};

void add_token(const SlowTensors& t, const FfnConfig& config, const at::Tensor& x, std::size_t row,
               std::size_t batch, SlowSums& sums) {
  const auto m = static_cast<std::size_t>(config.experts);
  for (auto* of : {&sums.n, &sums.g1, &sums.a1, &sums.a2, &sums.ga, &sums.ga2, &sums.r})
    of->resize(std::max(of->size(), (row + 1) * m), 0.0);
  for (auto* of : {&sums.prob, &sums.logit, &sums.logit_sq}) of->resize((batch + 1) * m, 0.0);
  std::vector<double> z(m), p(m);
  std::vector<std::size_t> order(m);
  std::iota(order.begin(), order.end(), 0u);
  double total = 0.0;
  for (std::size_t k = 0; k < m; ++k) {
    z[k] = t.at("router.weight")[static_cast<std::int64_t>(k)].dot(x).item<double>();
    total += std::exp(z[k]);
  }
  for (std::size_t k = 0; k < m; ++k) {
    p[k] = std::exp(z[k]) / total;
    sums.prob[batch * m + k] += p[k];
    sums.logit[batch * m + k] += z[k];
    sums.logit_sq[batch * m + k] += z[k] * z[k];
    sums.entropy -= p[k] * std::log(p[k]);
  }
  sums.log_sum_exp_sq += std::log(total) * std::log(total);
  std::ranges::sort(order, [&](std::size_t a, std::size_t b) { return p[a] > p[b]; });
  order.resize(static_cast<std::size_t>(config.top_k));
  double chosen = 0.0;
  for (const std::size_t k : order) chosen += p[k];
  at::Tensor h = at::zeros_like(x);
  for (const std::size_t k : order) h = h + p[k] / chosen * slow_expert(t, static_cast<std::int64_t>(k), x);
  for (const std::size_t k : order) {
    const at::Tensor f = slow_expert(t, static_cast<std::int64_t>(k), x);
    const double g = p[k] / chosen, norm = f.norm().item<double>();
    const std::size_t at = row * m + k;
    sums.n[at] += 1.0;
    sums.g1[at] += g;
    sums.a1[at] += norm;
    sums.a2[at] += norm * norm;
    sums.ga[at] += g * norm;
    sums.ga2[at] += g * norm * g * norm;
    // What the layer's output is without the expert, the other gates grown to sum 1.
    const at::Tensor without = (h - g * f) / (1.0 - g);
    sums.r[at] += (without - h).norm().item<double>();
  }
}

TEST(TopkTrace, SumsAreThoseOfALoopOverTokensPerBatchAndPerClass) {
  const ModelConfig config = topk_config(5, 2);
  const auto model = topk_model(config);
  const std::vector<HeldOutBatch> batches = random_batches({4, 5});
  const TopkObservation found = observe_topk(*model, batches, kClasses, false);
  const auto passes = ffn_passes(*model, batches);
  ASSERT_EQ(found.trace.layers.size(), 2u);
  EXPECT_EQ(found.trace.experts, 5u);
  EXPECT_EQ(found.trace.top_k, 2u);
  EXPECT_EQ(found.trace.aux_loss_coef, 0.01);
  for (std::size_t l = 0; l < 2; ++l) {
    const SlowTensors t = slow_copies(*topk_ffn(*model, l));
    SlowSums by_batch, by_class;
    for (std::size_t b = 0; b < batches.size(); ++b) {
      const at::Tensor x = passes[b][l].x.to(at::kDouble);
      for (std::int64_t i = 0; i < x.size(0); ++i) {
        const auto label = static_cast<std::size_t>(batches[b].labels[i].item<std::int64_t>());
        for (std::int64_t j = 0; j < x.size(1); ++j) {
          add_token(t, config.vit.ffn, x[i][j], b, b, by_batch);
          add_token(t, config.vit.ffn, x[i][j], label, b, by_class);
        }
      }
    }
    const TraceLayer& layer = found.trace.layers[l];
    EXPECT_EQ(layer.layer, static_cast<std::int64_t>(l));
    EXPECT_EQ(layer.tokens, (std::vector<double>{20.0, 25.0}));
    EXPECT_EQ(layer.count, by_batch.n);
    expect_near(layer.sum_gate, by_batch.g1, 1e-4);
    expect_near(layer.sum_norm, by_batch.a1, 1e-3);
    expect_near(layer.sum_norm_sq, by_batch.a2, 1e-2);
    expect_near(layer.sum_gate_norm, by_batch.ga, 1e-3);
    expect_near(layer.sum_gate_norm_sq, by_batch.ga2, 1e-2);
    expect_near(layer.sum_rsd, by_batch.r, 1e-3);
    expect_near(layer.sum_prob, by_batch.prob, 1e-4);
    expect_near(layer.sum_logit, by_batch.logit, 1e-3);
    expect_near(layer.sum_logit_sq, by_batch.logit_sq, 1e-2);
    const TopkSums& sums = found.sums[l];
    EXPECT_EQ(sums.by_class.n, by_class.n);
    expect_near(sums.by_class.g1, by_class.g1, 1e-4);
    expect_near(sums.by_class.a1, by_class.a1, 1e-3);
    expect_near(sums.by_class.a2, by_class.a2, 1e-2);
    expect_near(sums.by_class.ga, by_class.ga, 1e-3);
    expect_near(sums.by_class.ga2, by_class.ga2, 1e-2);
    expect_near(sums.by_class.r, by_class.r, 1e-3);
    EXPECT_TRUE(sums.by_class.t1.empty());
    EXPECT_NEAR(sums.entropy, by_batch.entropy, 1e-4);
    EXPECT_NEAR(sums.log_sum_exp_sq, by_batch.log_sum_exp_sq, 1e-3);
    const at::Tensor norms = t.at("router.weight").norm(2, 1);
    for (std::int64_t k = 0; k < 5; ++k)
      EXPECT_NEAR(sums.router_norms[static_cast<std::size_t>(k)], norms[k].item<double>(), 1e-12);
  }
}

TEST(TopkTrace, TaylorIsTheDerivativeOfTheLossByTheGates) {
  const auto model = topk_model(topk_config(4, 2), 7);
  const std::vector<HeldOutBatch> batches = random_batches({5, 3});
  const TopkObservation found = observe_topk(*model, batches, kClasses, true);
  const ObservedBlocks observed(*model);
  std::vector<at::Tensor> dropped;  // [M] per layer: gates become (1 - dropped) times what they are
  for (const auto& block : observed.blocks()) {
    dropped.push_back(at::zeros({4}).set_requires_grad(true));
    block->observe_ffn([&ffn = dynamic_cast<TopkFfn&>(*block->ffn()), part = dropped.back()](
                           const at::Tensor& x, const at::Tensor&) {
      const at::Tensor rows = x.reshape({-1, x.size(-1)});
      TopkFfn::Routing routing = ffn.route(ffn.router_logits(rows));
      routing.gates = routing.gates * (1.0 - part).index({routing.chosen});
      return ffn.combine(rows, routing).view(x.sizes());
    });
  }
  for (const HeldOutBatch& batch : batches) {
    const at::Tensor log_p = model->forward(batch.images, {}).log_softmax(1);
    (-log_p.gather(1, batch.labels.unsqueeze(1)).sum()).backward();
  }
  for (std::size_t l = 0; l < 2; ++l) {
    const std::vector<double> sums = analysis::column_sums(found.trace.layers[l].sum_taylor, 4);
    const std::vector<double> classes = analysis::column_sums(found.sums[l].by_class.t1, 4);
    double largest = 0.0;
    for (std::int64_t k = 0; k < 4; ++k) {
      const auto i = static_cast<std::size_t>(k);
      largest = std::max(largest, std::abs(sums[i]));
      EXPECT_NEAR(sums[i], dropped[l].grad()[k].item<double>(), 1e-4 * (1.0 + std::abs(sums[i])));
      EXPECT_NEAR(sums[i], classes[i], 1e-9);
    }
    EXPECT_GT(largest, 1e-3);
  }
}

TEST(TopkTrace, DamagesAndTaylorTermsOfThePublishedTokens) {
  for (const char* name : {"two_experts_by_hand", "four_experts_with_loss"}) {
    const auto one = analysis::vector_case("c2_damage", name);
    const auto k = static_cast<std::int64_t>(one.at("inputs").at("g").size());
    const at::Tensor f = at::tensor(analysis::table(one.at("inputs").at("f")), at::kDouble).view({1, k, -1});
    const at::Tensor g = at::tensor(analysis::numbers(one.at("inputs").at("g")), at::kDouble).view({1, k});
    const auto values = [](const at::Tensor& of) {
      const at::Tensor flat = of.contiguous();
      return std::vector<double>(flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel());
    };
    analysis::expect_key(one, "damage_renormalised", values(renormalised_damage(f, g)));
    analysis::expect_key(one, "damage_not_renormalised", values(g * f.norm(2, -1)));
  }
}

TEST(TopkTrace, TheDamageIsWhatARouterWithoutTheExpertDoes) {
  const auto model = topk_model(topk_config(3, 3), 3);
  const auto ffn = topk_ffn(*model, 0);
  const at::NoGradGuard no_grad;
  const at::Tensor x = random_values({6, 12}, 9), logits = ffn->router_logits(x);
  const TopkFfn::Routing routing = ffn->route(logits);
  const at::Tensor damage =
      renormalised_damage(ffn->outputs(x, routing.chosen).to(at::kDouble), routing.gates.to(at::kDouble));
  const at::Tensor h = ffn->combine(x, routing);
  for (std::int64_t e = 0; e < 3; ++e) {
    at::Tensor masked = logits.clone();
    masked.select(1, e).fill_(-INFINITY);
    const at::Tensor change = (ffn->combine(x, ffn->route(masked)) - h).norm(2, 1);
    const at::Tensor expected = (damage * routing.chosen.eq(e)).sum(1);
    EXPECT_LT(largest_difference(change, expected), 1e-4) << e;
  }
}

TEST(TopkTrace, AnExpertThatHasAllGatesHasNoDamageThatCouldBeReplaced) {
  const at::Tensor f = random_values({1, 2, 4}, 1).to(at::kDouble);
  const at::Tensor g = at::tensor({1.0, 0.0}, at::kDouble).view({1, 2});
  EXPECT_EQ(renormalised_damage(f, g)[0][0].item<double>(), 0.0);
  const auto model = topk_model(topk_config(4, 1));
  const TopkObservation found = observe_topk(*model, random_batches({4}), kClasses, false);
  EXPECT_TRUE(found.trace.layers[0].sum_rsd.empty());  // one choice: always all of the gates
  EXPECT_FALSE(found.trace.layers[0].sum_gate_norm.empty());
}

TEST(TopkTrace, TheSampleIsOfTheSameTokensInEveryLayerAndAtEveryTime) {
  ModelConfig config = topk_config(4, 2);
  config.vit.ffn.bias_balance = 0.1;
  const auto model = topk_model(config);
  const std::vector<HeldOutBatch> batches = random_batches({4, 5});
  for (std::size_t l = 0; l < 2; ++l)
    topk_ffn(*model, l)->named_buffers()["selection_bias"].fill_(0.0)[1] = 0.3;
  const TopkObservation found = observe_topk(*model, batches, kClasses, false);
  const auto passes = ffn_passes(*model, batches);
  for (std::size_t l = 0; l < 2; ++l) {
    const TraceLayer& layer = found.trace.layers[l];
    EXPECT_EQ(layer.item, found.trace.layers[0].item);
    EXPECT_EQ(layer.item_domain, (std::vector<std::int32_t>{0, 1, 2, 0, 1, 2, 0, 1, 2}));
    ASSERT_EQ(layer.sampled(), 45u);  // fewer than kSampledTokens: all, in order
    const at::Tensor rows = at::cat({passes[0][l].x.reshape({-1, 12}), passes[1][l].x.reshape({-1, 12})});
    EXPECT_LT(largest_difference(at::tensor(layer.hidden).view({45, 12}), rows),
              2e-6);  // other libraries' products
    EXPECT_LT(
        largest_difference(at::tensor(layer.logits).view({45, 4}), topk_ffn(*model, l)->router_logits(rows)),
        2e-6);
    EXPECT_EQ(layer.item[24], 4);
    EXPECT_EQ(layer.batch[24], 1);
    std::vector<std::uint32_t> routes = analysis::sampled_routes(layer, 4, 2, found.trace.scores);
    std::vector<std::uint32_t> own = found.sums[l].routes;
    for (std::size_t t = 0; t < 45; ++t) {
      std::sort(routes.begin() + static_cast<std::ptrdiff_t>(2 * t),
                routes.begin() + static_cast<std::ptrdiff_t>(2 * t + 2));
      std::sort(own.begin() + static_cast<std::ptrdiff_t>(2 * t),
                own.begin() + static_cast<std::ptrdiff_t>(2 * t + 2));
    }
    EXPECT_EQ(routes, own);
    EXPECT_NEAR(layer.selection_bias.at(1), 0.3, 1e-7);
  }
}

TEST(TopkTrace, TheSampleIsBounded) {
  const auto model = topk_model(topk_config(4, 2));
  const TopkObservation found =
      observe_topk(*model, random_batches(std::vector<std::int64_t>(3, 300)), kClasses, false);
  EXPECT_EQ(found.trace.layers[0].sampled(), static_cast<std::size_t>(kSampledTokens / 3 * 3));
  EXPECT_TRUE(std::ranges::is_sorted(found.trace.layers[0].item));
}

TEST(TopkTrace, LeavesTheModelAsItWas) {
  const auto model = topk_model(topk_config(4, 2));
  model->train();
  const std::vector<HeldOutBatch> batches = random_batches({4});
  const at::Tensor before = model->forward(batches[0].images, {});
  observe_topk(*model, batches, kClasses, true);
  EXPECT_TRUE(model->is_training());
  EXPECT_TRUE(at::equal(model->forward(batches[0].images, {}), before));
  for (const at::Tensor& parameter : model->parameters()) EXPECT_FALSE(parameter.grad().defined());
}

TEST(TopkTrace, AModelWithoutTopkBlocksHasNoLayers) {
  ModelConfig config = topk_config(4, 2);
  config.vit.ffn = FfnConfig{};
  EXPECT_TRUE(observe_topk(*topk_model(config), random_batches({4}), kClasses, true).trace.layers.empty());
}

TEST(TopkTrace, SavedAndReadAgainItIsTheSameAndGivesTheSameAnalysis) {
  const auto model = topk_model(topk_config(5, 2));
  const TopkObservation found = observe_topk(*model, random_batches({6, 6, 6, 6, 5}), kClasses, true);
  const TestFolder folder;
  analysis::write_trace(found.trace, folder / "trace.h5");
  const analysis::Trace again = analysis::read_trace(folder / "trace.h5");
  for (std::size_t l = 0; l < 2; ++l) {
    const TraceLayer &a = found.trace.layers[l], &b = again.layers.at(l);
    EXPECT_EQ(a.sum_rsd, b.sum_rsd);
    EXPECT_EQ(a.sum_taylor, b.sum_taylor);
    EXPECT_EQ(a.item_count, b.item_count);
    EXPECT_EQ(a.item, b.item);
    EXPECT_EQ(a.hidden, b.hidden);
  }
  const auto report = analysis::report_json(again, analysis::analyse_trace(again));
  EXPECT_EQ(report.dump(), analysis::report_json(found.trace, analysis::analyse_trace(found.trace)).dump());
  const auto& layer = report.at("layers")[0];
  EXPECT_EQ(layer.at("domains").size(), 3u);
  EXPECT_TRUE(layer.at("random_router").at("z").is_number());
  EXPECT_TRUE(layer.at("label_shuffle").at("z").is_number());
  EXPECT_TRUE(layer.at("gamma_eff").is_number());
  EXPECT_TRUE(layer.at("scores").at("taylor").at("values").is_array());
}

// Images of 8 classes, each one patch four times, and noise; 16 of each.
std::vector<HeldOutBatch> patterned_batches() {
  const at::Tensor patterns = random_values({8, 3, 4, 4}, 50).repeat({1, 1, 2, 2});
  std::vector<HeldOutBatch> batches;
  for (std::uint64_t b = 0; b < 4; ++b) {
    const at::Tensor labels = at::arange(32, at::kLong).remainder(8);
    batches.push_back({patterns.index_select(0, labels) + random_values({32, 3, 8, 8}, 60 + b), labels});
  }
  return batches;
}

TEST(TopkTrace, PlantedSpecialistsOfClassesAreFoundAndARandomRoutersAreNot) {
  ModelConfig config = topk_config(8, 1);
  config.vit.classes = 8;
  config.vit.pool = "avg";
  config.vit.depth = 1;
  const std::vector<HeldOutBatch> batches = patterned_batches();
  const auto specialists = [&](std::uint64_t seed, bool planted) {
    const auto model = make_model(config, seed);
    const at::NoGradGuard no_grad;
    const at::Tensor& router = topk_ffn(*model, 0)->router().weight;
    router.copy_(random_values(router.sizes(), seed));
    if (planted) {  // the classes' mean inputs less the mean of all
      const at::Tensor means = ffn_passes(*model, batches)[0][0].x.mean(1).view({4, 8, -1}).mean(0);
      router.copy_(means - means.mean(0));
    }
    const TopkObservation found = observe_topk(*model, batches, 8, false);
    return analysis::specialisation(found.trace, found.trace.layers[0]);
  };
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    const analysis::Specialisation planted = specialists(seed, true);
    EXPECT_GT(planted.nmi.value, 0.6) << seed;
    EXPECT_GT(planted.shuffle.z.value, 3.0) << seed;
    EXPECT_GT(planted.router.z.value, 3.0) << seed;
    const analysis::Specialisation random = specialists(seed, false);
    EXPECT_GT(random.shuffle.z.value, 3.0) << seed;  // as any router on separable classes
    EXPECT_LT(random.router.z.value, 3.0) << seed;
  }
}

}  // namespace
}  // namespace exfusion
