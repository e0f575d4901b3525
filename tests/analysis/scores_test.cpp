#include "analysis/scores.h"

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
  EXPECT_EQ(expert_scores(accumulate(layer, 4)).size(), 18u);
}

TEST(PruneOrder, TiesGoByNumber) {
  EXPECT_EQ(prune_order({2, 1, 2, 1}), (std::vector<std::size_t>{1, 3, 0, 2}));
}

}  // namespace
}  // namespace exfusion::analysis
