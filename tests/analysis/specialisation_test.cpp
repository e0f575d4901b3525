#include "analysis/specialisation.h"

#include <algorithm>
#include <cmath>

#include "core/random.h"
#include "vectors.h"

namespace exfusion::analysis {
namespace {

TEST(Nmi, OfThePublishedTables) {
  const json file = vectors("d3_nmi_tables");
  for (const json& one : file.at("cases")) {
    if (!one.at("expected").contains("nmi_sqrt") || one.at("expected").at("nmi_sqrt").is_null()) continue;
    const json& rows = one.at("inputs").at("table_rows_expert_cols_class");
    const MutualInformation found = mutual_information(table(rows), rows[0].size());
    expect_key(one, "mutual_information", found.information);
    expect_key(one, "H_rows", found.h_rows);
    expect_key(one, "H_cols", found.h_columns);
    expect_key(one, "nmi_sqrt", found.nmi_sqrt());
    expect_key(one, "nmi_min", found.nmi_min());
    if (one.at("expected").contains("miller_madow_bias")) expect_key(one, "miller_madow_bias", found.bias);
  }
}

TEST(Profile, OfThePublishedFourTokens) {
  const json one = vector_case("b6_specialization", "four_tokens");
  Trace trace;
  trace.experts = 4;
  trace.top_k = 2;
  TraceLayer layer;
  layer.tokens = {4.0};
  layer.count = numbers(one.at("expected").at("counts"));
  layer.domain = {0};
  const Specialisation found = specialisation(trace, layer);
  ASSERT_EQ(found.domains.size(), 1u);
  expect_key(one, "specialization", found.domains[0].specialisation);
  EXPECT_EQ(found.domains[0].n50, 1u);
  EXPECT_EQ(found.nmi.reason, "a single domain");
}

// Tokens of 10 classes, a domain each: hidden = class mean + N(0, 1), 32 values. `planted`: class c selects
// expert c % 8; otherwise a random linear router does.
TraceLayer classes(double spread, bool planted, std::uint32_t seed) {
  constexpr std::size_t kLabels = 10, kHidden = 32, kExperts = 8, kTokens = 75;
  CounterRandom random(5, Draw::synthetic, 2, seed);
  std::vector<double> means(kLabels * kHidden), router(kExperts * kHidden);
  for (double& one : means) one = spread * random.normal();
  for (double& one : router) one = random.normal();
  TraceLayer layer;
  for (std::size_t b = 0; b < 4 * kLabels; ++b) {
    const std::size_t c = b % kLabels;
    layer.tokens.push_back(kTokens);
    layer.domain.push_back(static_cast<std::int32_t>(c));
    layer.count.resize((b + 1) * kExperts, 0.0);
    for (std::size_t t = 0; t < kTokens; ++t) {
      std::vector<double> scores(kExperts, 0.0);
      for (std::size_t d = 0; d < kHidden; ++d) {
        const double hidden = means[c * kHidden + d] + random.normal();
        layer.hidden.push_back(static_cast<float>(hidden));
        for (std::size_t i = 0; i < kExperts; ++i) scores[i] += hidden * router[i * kHidden + d];
      }
      if (planted) scores[c % kExperts] += 1e3;
      for (const double score : scores) layer.logits.push_back(static_cast<float>(score));
      layer.count[b * kExperts +
                  static_cast<std::size_t>(std::ranges::max_element(scores) - scores.begin())] += 1.0;
      layer.batch.push_back(static_cast<std::int32_t>(b));
    }
  }
  return layer;
}

Trace eight_experts() {
  Trace trace;
  trace.experts = 8;
  trace.top_k = 1;
  return trace;
}

TEST(RandomRouter, IsTheNullOfThePublishedRepetitions) {
  const json file = vectors("d5_random_router_null");
  for (const json& expected : file.at("statistical")) {
    double mean = 0.0;
    constexpr int kRepetitions = 4;
    for (std::uint32_t seed = 0; seed < kRepetitions; ++seed)
      mean += specialisation(eight_experts(), classes(expected.at("class_spread"), false, seed))
                  .router.mean.value /
              kRepetitions;
    EXPECT_NEAR(mean, expected.at("nmi_sqrt_mean").get<double>(),
                0.01 + 1.5 * expected.at("nmi_sqrt_sd").get<double>());
  }
}

TEST(RandomRouter, IsNotCalledASpecialistAndPlantedExpertsAre) {
  for (std::uint32_t seed = 0; seed < 5; ++seed) {
    const Specialisation random = specialisation(eight_experts(), classes(1.0, false, seed));
    EXPECT_GT(random.shuffle.z.value, 3.0);  // beyond chance, as any router on separable classes
    EXPECT_LT(std::abs(random.router.z.value), 3.0);
    EXPECT_GT(random.nmi.value, 0.1);
    const Specialisation planted = specialisation(eight_experts(), classes(1.0, true, seed));
    EXPECT_GT(planted.router.z.value, 3.0);
    EXPECT_GT(planted.shuffle.z.value, 3.0);
    EXPECT_GT(planted.nmi.value, 0.85);
    EXPECT_EQ(planted.domains[3].n50, 1u);
  }
}

TEST(RandomRouter, ThatSendsEverythingToOneExpertHasNoInformation) {
  TraceLayer layer = classes(1.0, true, 0);
  for (float& one : layer.hidden) one += 1e4f;  // what all tokens share decides
  const Specialisation found = specialisation(eight_experts(), layer);
  EXPECT_EQ(found.router.mean.value, 0.0);
  EXPECT_GT(found.router.measured.value, 0.85);
}

TEST(LabelShuffle, ExpertsThatDoNotKnowTheDomainStayWithinIt) {
  TraceLayer layer = classes(0.0, false, 0);
  const Specialisation found = specialisation(eight_experts(), layer);
  EXPECT_LT(std::abs(found.shuffle.z.value), 3.5);
  EXPECT_LT(found.nmi.value, 0.03);
}

// The same tokens in batches that mix the classes: each old batch becomes an item.
TEST(Items, OfMixedBatchesAreWhatDomainsOfPureOnesAre) {
  const TraceLayer pure = classes(1.0, true, 0);
  TraceLayer mixed;
  mixed.item_count = pure.count;
  mixed.item_domain = pure.domain;
  mixed.item = pure.batch;
  mixed.logits = pure.logits;
  mixed.hidden = pure.hidden;
  for (std::size_t b = 0; b < 4; ++b) {
    mixed.tokens.push_back(10.0 * pure.tokens[0]);
    mixed.count.resize((b + 1) * 8, 0.0);
  }
  for (std::size_t i = 0; i < pure.count.size(); ++i) mixed.count[i / 80 * 8 + i % 8] += pure.count[i];
  for (const std::int32_t item : pure.batch) mixed.batch.push_back(item / 10);
  const Specialisation a = specialisation(eight_experts(), pure), b = specialisation(eight_experts(), mixed);
  EXPECT_EQ(a.nmi.value, b.nmi.value);
  EXPECT_EQ(a.shuffle.z.value, b.shuffle.z.value);
  EXPECT_EQ(a.router.z.value, b.router.z.value);
  EXPECT_EQ(a.domains.at(3).specialisation, b.domains.at(3).specialisation);
}

TEST(Nulls, SayWhatIsMissing) {
  TraceLayer layer = classes(1.0, false, 0);
  layer.hidden.clear();
  EXPECT_EQ(specialisation(eight_experts(), layer).router.z.reason, "hidden states are not in this trace");
  layer.domain.clear();
  EXPECT_EQ(specialisation(eight_experts(), layer).nmi.reason, "domains are not in this trace");
}

}  // namespace
}  // namespace exfusion::analysis
