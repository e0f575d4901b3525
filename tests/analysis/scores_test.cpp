#include "analysis/scores.h"

#include <cmath>

#include "vectors.h"

namespace exfusion::analysis {
namespace {

// The published four tokens, one batch each, with one more expert that no token selects.
TraceLayer four_tokens() {
  constexpr std::size_t kExperts = 4;
  const json one = vector_case("c1_scores", "c1_accumulators");
  TraceLayer layer;
  for (const json& token : one.at("inputs").at("tokens")) {
    const std::size_t row = layer.tokens.size() * kExperts;
    layer.tokens.push_back(1.0);
    for (std::vector<double>* sums : {&layer.count, &layer.sum_gate, &layer.sum_norm, &layer.sum_norm_sq,
                                      &layer.sum_gate_norm, &layer.sum_gate_norm_sq})
      sums->resize(row + kExperts, 0.0);
    for (const json& use : token) {
      const std::size_t i = row + use.at("expert").get<std::size_t>();
      const double gate = use.at("gate"), norm = use.at("norm");
      layer.count[i] = 1.0;
      layer.sum_gate[i] = gate;
      layer.sum_norm[i] = norm;
      layer.sum_norm_sq[i] = norm * norm;
      layer.sum_gate_norm[i] = gate * norm;
      layer.sum_gate_norm_sq[i] = gate * norm * gate * norm;
    }
  }
  return layer;
}

std::vector<double> first_three(std::vector<double> values) {
  EXPECT_EQ(values.at(3), 0.0);  // the expert that is never routed
  values.resize(3);
  return values;
}

TEST(Scores, AccumulatorsOfThePublishedTokens) {
  const json one = vector_case("c1_scores", "c1_accumulators");
  const Accumulators found = accumulate(four_tokens(), 4);
  expect_key(one, "N", first_three(found.n));
  expect_key(one, "G1", first_three(found.g1));
  expect_key(one, "A1", first_three(found.a1));
  expect_key(one, "A2", first_three(found.a2));
  expect_key(one, "GA", first_three(found.ga));
  expect_key(one, "GA2", first_three(found.ga2));
}

TEST(Scores, EveryPublishedExponentThatSixSumsAllow) {
  const json one = vector_case("c1_scores", "c1_all_exponents");
  const Accumulators sums = accumulate(four_tokens(), 4);
  int compared = 0;
  for (const json& expected : one.at("expected").at("scores")) {
    const Score found = expert_score(sums, expected.at("b"), expected.at("alpha"), expected.at("beta"));
    if (!found.reason.empty()) continue;
    expect_near(first_three(found.values), numbers(expected.at("S")), 1e-12);
    ++compared;
  }
  EXPECT_EQ(compared, 12);
}

TEST(Scores, FrequencyDropsTheRareStrongExpertAndManKeepsIt) {
  const json one = vector_case("c1_scores", "c1_named_criteria");
  const Accumulators sums = accumulate(four_tokens(), 4);
  for (const json& expected : one.at("expected").at("criteria")) {
    const Score found = expert_score(sums, expected.at("b"), expected.at("alpha"), expected.at("beta"));
    const std::vector<std::size_t> order = prune_order(found.values);
    EXPECT_EQ(order[0], 3u) << found.name;  // never routed
    EXPECT_EQ(order[1], expected.at("prune_first").get<std::size_t>()) << found.name;
  }
  EXPECT_EQ(expert_score(sums, 1, 0, 2).name, "msan");
  EXPECT_EQ(expert_score(sums, 1, 1, 1).name, "reap");
}

TEST(Scores, SayWhichFieldIsMissing) {
  TraceLayer layer = four_tokens();
  layer.sum_norm_sq.clear();
  EXPECT_EQ(expert_score(accumulate(layer, 4), 1, 0, 2).reason, "sum_norm_sq is not in this trace");
  const std::vector<Score> all = expert_scores(accumulate(layer, 4));
  EXPECT_EQ(all.size(), 20u);
  EXPECT_EQ(all[18].reason, "sum_rsd is not in this trace");
  EXPECT_EQ(all[19].reason, "sum_taylor is not in this trace");
}

TEST(Scores, DamageAndTaylorAreTheirSums) {
  TraceLayer layer = four_tokens();
  layer.sum_rsd.assign(16, 0.5);
  layer.sum_taylor.assign(16, -0.25);
  const std::vector<Score> all = expert_scores(accumulate(layer, 4));
  EXPECT_EQ(all[18].name, "rsd");
  EXPECT_EQ(all[18].values, (std::vector<double>(4, 2.0)));
  EXPECT_EQ(all[19].name, "taylor");
  EXPECT_EQ(all[19].values, (std::vector<double>(4, -1.0)));
}

// Tokens that a mask takes out are no part of a trace.
TEST(Scores, OfThePublishedMaskedTokens) {
  const json one = vector_case("c4_reap_mask", "mask");
  const json& inputs = one.at("inputs");
  TraceLayer layer;
  for (std::size_t t = 0; t < inputs.at("mask").size(); ++t) {
    if (inputs.at("mask")[t] == 0) continue;
    const std::vector<double> f = numbers(inputs.at("activations_expert_0")[t]);
    const auto expert = inputs.at("selections")[t][0].get<std::size_t>();
    layer.tokens.push_back(1.0);
    layer.count.resize(2 * layer.tokens.size(), 0.0);
    layer.sum_norm.resize(2 * layer.tokens.size(), 0.0);
    layer.count[2 * layer.tokens.size() - 2 + expert] = 1.0;
    if (expert == 0) layer.sum_norm[2 * layer.tokens.size() - 2] = std::hypot(f[0], f[1]);
  }
  const Accumulators sums = accumulate(layer, 2);
  expect_key(one, "frequency", expert_score(sums, 0, 0, 0).values);
  expect_key(one, "ean_sum", expert_score(sums, 0, 0, 1).values);
  expect_key(one, "ean_mean", expert_score(sums, 1, 0, 1).values);
}

TEST(PruneOrder, TiesGoByNumber) {
  EXPECT_EQ(prune_order({2, 1, 2, 1}), (std::vector<std::size_t>{1, 3, 0, 2}));
}

}  // namespace
}  // namespace exfusion::analysis
