#include "analysis/held_out.h"

#include <cmath>

#include "analysis/congestion.h"
#include "analysis/imbalance.h"
#include "analysis/multi_type.h"
#include "analysis/quality.h"
#include "core/random.h"
#include "vectors.h"

namespace exfusion::analysis {
namespace {

// The fifty batches of the published vectors as a layer. Their quality is a mean over batches: one token
// each.
TraceLayer fifty_batches(const json& one) {
  TraceLayer layer;
  layer.tokens.assign(50, 1.0);
  layer.count = table(one.at("inputs").at("counts"));
  layer.sum_logit = table(one.at("inputs").at("q"));
  return layer;
}

TEST(HeldOut, L1OfThePublishedVectors) {
  const json one = vector_case("a3_bootstrap_heldout", "fifty_batches");
  const HeldOutL1 found = held_out_l1(fifty_batches(one), 64);
  expect_key(one, "heldout_l1_mfg", found.mfg.value);
  expect_key(one, "heldout_l1_softmax_T", found.softmax_t.value);
  expect_key(one, "heldout_l1_softmax_1", found.softmax_1.value);
  expect_key(one, "heldout_l1_uniform", found.uniform.value);
  expect_key(one, "l1_half_vs_half", found.half_vs_half.value);
  EXPECT_EQ(found.mean_prob.reason, "sum_prob is not in this trace");
}

TEST(HeldOut, PooledEstimatesOfThePublishedVectors) {
  const json one = vector_case("a3_bootstrap_heldout", "fifty_batches");
  const TraceLayer layer = fifty_batches(one);
  const QualitySums all = sum_batches(layer, 64, every_batch(50).all);
  const QualitySums even = sum_batches(layer, 64, every_batch(50).even);
  const std::vector<double> q = qualities(all, Quality::mean_logit).q, m = raw_shares(all.count);
  const std::vector<double> q_even = qualities(even, Quality::mean_logit).q, m_even = raw_shares(even.count);
  Equilibrium at;
  expect_key(one, "pooled_E1_ols", *gamma_least_squares(q, m));
  expect_key(one, "pooled_E2_l1", fit_game_l1(q, m, 0.0, 400.0).parameter);
  expect_key(one, "pooled_E3_ml", *gamma_likelihood(q, m, at).value);
  expect_key(one, "even_E2_l1", fit_game_l1(q_even, m_even, 0.0, 400.0).parameter);
  expect_key(one, "even_T_l1", fit_temperature_l1(q_even, m_even).parameter);
}

TEST(Bootstrap, IntervalOfThePublishedVectors) {
  const json file = vectors("a3_bootstrap_heldout");
  const TraceLayer layer = fifty_batches(file.at("cases")[0]);
  std::vector<double> estimates;
  for (std::uint32_t r = 0; r < kResamples; ++r) {
    const QualitySums sums = sum_batches(layer, 64, resample_batches(50, r).all);
    estimates.push_back(*gamma_least_squares(qualities(sums, Quality::mean_logit).q, raw_shares(sums.count)));
  }
  const json& expected = file.at("statistical")[0];
  const Interval found = percentile_interval(estimates, 0.025);
  EXPECT_NEAR(found.low, expected.at("expected")[0].get<double>(), expected.at("tolerance").get<double>());
  EXPECT_NEAR(found.high, expected.at("expected")[1].get<double>(), expected.at("tolerance").get<double>());
}

TEST(Bootstrap, HalvesStayApartAndEveryResampleHasAsManyBatches) {
  const Resample times = resample_batches(7, 3);
  double even = 0.0, odd = 0.0;
  for (std::size_t b = 0; b < 7; ++b) {
    EXPECT_EQ(b % 2 == 0 ? times.odd[b] : times.even[b], 0.0);
    EXPECT_EQ(times.all[b], times.even[b] + times.odd[b]);
    even += times.even[b];
    odd += times.odd[b];
  }
  EXPECT_EQ(even, 4.0);
  EXPECT_EQ(odd, 3.0);
  EXPECT_EQ(times.all, resample_batches(7, 3).all);
  EXPECT_NE(times.all, resample_batches(7, 4).all);
}

TEST(Bootstrap, PercentilesAndWhatHasNone) {
  std::vector<double> values(1001);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(1000 - i);
  const Interval found = percentile_interval(values, 0.025);
  EXPECT_DOUBLE_EQ(found.low, 25.0);
  EXPECT_DOUBLE_EQ(found.high, 975.0);
  for (std::size_t i = 0; i < 30; ++i) values[i] = INFINITY;
  EXPECT_FALSE(percentile_interval(values, 0.025).defined());
}

TEST(Bootstrap, TailsWidenForFewBatchesAsStudentsDo) {
  // Student's 0.975 quantiles from tables: 2.7764 with 4 degrees of freedom, 2.0106 with 48
  EXPECT_NEAR(expanded_tail(6), 0.5 * std::erfc(2.7764 * std::sqrt(3.0 / 2.0) / std::sqrt(2.0)), 3e-5);
  EXPECT_NEAR(expanded_tail(50), 0.5 * std::erfc(2.0106 * std::sqrt(25.0 / 24.0) / std::sqrt(2.0)), 1e-5);
  EXPECT_NEAR(expanded_tail(100000), 0.025, 1e-5);
}

TEST(Imbalance, OfThePublishedVectors) {
  const json uniform = vector_case("b6_specialization", "uniform_64");
  const json four = vector_case("b6_specialization", "four_tokens_concentration");
  for (const json& one : {uniform, four}) {
    const std::vector<double> counts = numbers(one.at("inputs").at("counts"));
    expect_key(one, "exp_entropy", imbalance(counts).exp_h);
    expect_key(one, "max_over_mean", imbalance(counts).max_mean);
    expect_key(one, "n50", static_cast<double>(half_load_experts(counts)));
  }
}

TEST(Imbalance, OfKnownLoads) {
  const Imbalance equal = imbalance(std::vector<double>(8, 3.0));
  EXPECT_DOUBLE_EQ(equal.gini, 0.0);
  EXPECT_DOUBLE_EQ(equal.cv, 0.0);
  EXPECT_DOUBLE_EQ(equal.m_sum_sq, 1.0);
  const Imbalance one = imbalance(std::vector<double>{0, 0, 0, 12});
  EXPECT_DOUBLE_EQ(one.gini, 0.75);
  EXPECT_DOUBLE_EQ(one.cv, std::sqrt(3.0));
  EXPECT_DOUBLE_EQ(one.m_sum_sq, 4.0);
  EXPECT_DOUBLE_EQ(one.exp_h, 1.0);
  EXPECT_DOUBLE_EQ(one.min_mean, 0.0);
  EXPECT_EQ(dead_experts(std::vector<double>{0, 0, 0, 12}), 3u);
}

// Three kinds of tokens with hidden states far apart, each with experts of its own, no congestion.
TraceLayer three_kinds(std::size_t per_batch) {
  TraceLayer layer;
  constexpr std::size_t kExperts = 12, kParts = 8, kHidden = 6;
  for (std::size_t b = 0; b < kParts; ++b) {
    layer.tokens.push_back(static_cast<double>(per_batch));
    layer.count.resize((b + 1) * kExperts);
    for (std::size_t t = 0; t < per_batch; ++t) {
      CounterRandom random(9, Draw::synthetic, static_cast<std::uint32_t>(b), static_cast<std::uint32_t>(t));
      const std::size_t kind = random.below(3);
      std::vector<double> logits(kExperts);
      for (std::size_t i = 0; i < kExperts; ++i)
        logits[i] = i / 4 == kind ? 3.0 + 0.5 * static_cast<double>(i % 4) : 0.0;
      const std::vector<double> p = softmax(logits);
      double rest = random.uniform();
      std::size_t chosen = 0;
      while (chosen + 1 < kExperts && rest >= p[chosen]) rest -= p[chosen++];
      layer.count[b * kExperts + chosen] += 1.0;
      for (std::size_t i = 0; i < kExperts; ++i) layer.logits.push_back(static_cast<float>(logits[i]));
      for (std::size_t d = 0; d < kHidden; ++d)
        layer.hidden.push_back(static_cast<float>((d / 2 == kind ? 5.0 : 0.0) + 0.1 * random.normal()));
      layer.batch.push_back(static_cast<std::int32_t>(b));
    }
  }
  return layer;
}

TEST(MultiTypes, FindTheKindsOfTokensAndARandomPartitionDoesNot) {
  const MultiTypeTable found = multi_type(three_kinds(250), 12);
  ASSERT_FALSE(found.rows.empty());
  EXPECT_EQ(found.rows[0].types, 4u);
  EXPECT_GT(found.rows[0].improvement(), 0.5);
  EXPECT_NEAR(found.rows[0].improvement_random(), 0.0, 0.1);
  EXPECT_DOUBLE_EQ(found.l1.value, found.rows[1].l1);
}

TEST(MultiTypes, KMeansFindsWellSeparatedClusters) {
  const TraceLayer layer = three_kinds(40);
  const Clusters found = k_means(layer.hidden, 6, 3, 0);
  for (std::size_t n = 0; n < found.type.size(); ++n) {
    for (std::size_t other = 0; other < n; ++other) {
      const bool alike = (layer.hidden[n * 6] > 2.5f) == (layer.hidden[other * 6] > 2.5f) &&
                         (layer.hidden[n * 6 + 2] > 2.5f) == (layer.hidden[other * 6 + 2] > 2.5f);
      ASSERT_EQ(alike, found.type[n] == found.type[other]);
    }
  }
}

}  // namespace
}  // namespace exfusion::analysis
