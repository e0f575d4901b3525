#include "analysis/null.h"

#include <cmath>
#include <numeric>

#include "analysis/congestion.h"
#include "analysis/layer_congestion.h"
#include "analysis/probe.h"
#include "simulated_trace.h"
#include "vectors.h"

namespace exfusion::analysis {
namespace {

TEST(GaussianNull, ClosedFormsOfThePublishedVectors) {
  const json file = vectors("a7_topk_null");
  for (const json& one : file.at("cases")) {
    const json& inputs = one.at("inputs");
    std::vector<double> temperatures, gammas;
    for (const double sigma : numbers(inputs.at("sigma"))) {
      const GaussianNull found = gaussian_null(inputs.at("M"), inputs.at("K"), sigma);
      temperatures.push_back(found.temperature);
      gammas.push_back(found.gamma);
      expect_key(one, "tau", found.tau);
      expect_key(one, "hazard", found.hazard);
    }
    expect_key(one, "T_eff", temperatures);
    expect_key(one, "gamma_null", gammas);
  }
}

// [experts] N(0, sd^2).
std::vector<double> normal_bias(std::size_t experts, double sd) {
  CounterRandom random(11, Draw::synthetic);
  std::vector<double> bias(experts);
  for (double& one : bias) one = sd * random.normal();
  return bias;
}

TEST(GaussianNull, SimulatedSharesAreThoseOfCounting) {
  const GaussianRouter router{normal_bias(16, 0.5), 1.0, 3};
  const RouterAverages found = simulate_router(router, 20000, 0);
  std::vector<double> counts(16, 0.0);
  const TraceLayer counted =
      simulated_layer({.bias = router.bias, .sigma = 1.0, .top_k = 3, .batches = 10, .tokens = 4000});
  for (std::size_t i = 0; i < counted.count.size(); ++i) counts[i % 16] += counted.count[i] / 120000.0;
  for (std::size_t i = 0; i < 16; ++i) {
    const double deviation = std::sqrt(counts[i] * (1.0 - 3.0 * counts[i]) / 120000.0);
    EXPECT_NEAR(found.share[i], counts[i], 4.5 * deviation) << i;
  }
}

TEST(GaussianNull, TheSimulatedNullIsNearTheClosedForm) {
  const json expected = vectors("a7_topk_null").at("statistical")[0];
  const std::vector<double> bias = normal_bias(64, 0.03);  // the closed form is the limit of small ones
  for (std::size_t i = 0; i < 3; ++i) {
    const double sigma = expected.at("sigma")[i].get<double>();
    const RouterAverages averages = simulate_router({bias, sigma, 8}, 4000, 0);
    const auto found = null_gamma(bias, averages.share, 8, 1e7, 0);
    ASSERT_TRUE(found);
    EXPECT_NEAR(found->value, expected.at("closed_form")[i].get<double>(),
                expected.at("tolerance")[i].get<double>());
  }
}

TEST(GaussianNull, FixedThresholdSharesSumToOneAndRiseWithBias) {
  const std::vector<double> share = fixed_threshold_shares(std::vector<double>{-1.0, 0.0, 1.0}, 0.5, 1);
  EXPECT_NEAR(share[0] + share[1] + share[2], 1.0, 1e-12);
  EXPECT_LT(share[0], share[1]);
  EXPECT_LT(share[1], share[2]);
}

TEST(BiasProbe, OfAGaussianRouterIsTheClosedForm) {
  const json expected = vectors("a7_bias_probe").at("statistical")[0];
  for (std::size_t i = 0; i < 2; ++i) {
    const TraceLayer layer = simulated_layer({.bias = normal_bias(64, 0.15),
                                              .sigma = expected.at("sigma")[i].get<double>(),
                                              .top_k = 8,
                                              .batches = 4,
                                              .tokens = 1000,
                                              .sampled = 1000});
    const auto found = probe_gamma(layer, 64, 8, RouterScores::softmax);
    ASSERT_TRUE(found);
    EXPECT_NEAR(*found, expected.at("closed_form")[i].get<double>(),
                expected.at("tolerance")[i].get<double>());
  }
}

TEST(BiasProbe, OfTheGameIsItsGamma) {
  for (const char* name : {"game_gamma_9", "game_gamma_14", "game_gamma_27", "game_gamma_39"}) {
    const json one = vector_case("a7_bias_probe", name);
    const double shift = one.at("inputs").at("p_two_sided");
    std::vector<double> q(64, 0.0);
    const auto shifted = [&](double by) {
      q[0] = by;
      return equilibrium_shares(q, one.at("inputs").at("gamma")).value().at(0);
    };
    const double up = shifted(shift), down = shifted(-shift);
    expect_key(one, "m_j_at_plus_0.1", up);
    expect_key(one, "m_j_at_minus_0.1", down);
    const double slope = (std::log(up / (1.0 - up)) - std::log(down / (1.0 - down))) / (2.0 * shift);
    expect_key(one, "gamma_int_two_sided", 64.0 * (1.0 / slope - 1.0));
  }
}

TEST(BiasProbe, WithAZeroSelectionBiasNothingChanges) {
  TraceLayer layer = simulated_layer(
      {.bias = normal_bias(8, 0.2), .sigma = 1.0, .top_k = 2, .batches = 2, .tokens = 500, .sampled = 500});
  const double without = *probe_gamma(layer, 8, 2, RouterScores::softmax);
  layer.selection_bias.assign(8, 0.0);
  EXPECT_DOUBLE_EQ(*probe_gamma(layer, 8, 2, RouterScores::softmax), without);
  EXPECT_DOUBLE_EQ(*probe_gamma(layer, 8, 2, RouterScores::sigmoid), without);
  EXPECT_FALSE(probe_gamma(layer, 8, 8, RouterScores::softmax));
}

TEST(Sigma, OfASampleIgnoresWhatAllLogitsOfATokenShare) {
  TraceLayer layer = simulated_layer({.bias = normal_bias(16, 0.3),
                                      .sigma = 1.5,
                                      .top_k = 2,
                                      .batches = 4,
                                      .tokens = 1000,
                                      .sampled = 1000,
                                      .common = 3.0});
  const std::vector<double> once(4, 1.0);
  EXPECT_NEAR(*sample_sigma(centre_sample(layer, 16), 16, once), 1.5, 0.02);
  EXPECT_NEAR(*uncentred_sigma(sum_batches(layer, 16, once)), std::sqrt(1.5 * 1.5 + 9.0), 0.1);
}

Trace one_layer(const SimulatedLayer& of) {
  Trace trace;
  trace.experts = of.bias.size();
  trace.top_k = of.top_k;
  trace.layers = {simulated_layer(of)};
  return trace;
}

TEST(LayerCongestion, ARouterWithoutCongestionIsRarelyCalledCongested) {
  int alarms = 0;
  for (std::uint32_t seed = 0; seed < 20; ++seed) {
    const Trace trace = one_layer({.bias = normal_bias(16, 0.2),
                                   .sigma = 2.6,
                                   .top_k = 2,
                                   .batches = 20,
                                   .tokens = 100,
                                   .sampled = 40,
                                   .seed = seed});
    const LayerCongestion found = analyse_congestion(trace, trace.layers[0]);
    ASSERT_TRUE(found.gamma_excess_ci.defined()) << found.gamma_excess_ci.reason;
    EXPECT_GT(found.gamma_eff.value, 2.0);  // which would be called congestion without the null
    alarms += found.gamma_excess_ci.low > 0.0;
  }
  EXPECT_LE(alarms, 3);  // 2.5 % of 20 are 0.5; more than 3 have a probability of 2e-3
}

TEST(LayerCongestion, FarBelowZeroTheNullIsByTheSameEstimator) {
  int alarms = 0;
  for (std::uint32_t seed = 0; seed < 8; ++seed) {
    const Trace trace = one_layer({.bias = normal_bias(16, 0.4),
                                   .sigma = 0.3,
                                   .top_k = 2,
                                   .batches = 20,
                                   .tokens = 100,
                                   .sampled = 40,
                                   .seed = seed});
    const LayerCongestion found = analyse_congestion(trace, trace.layers[0]);
    EXPECT_EQ(found.gamma_estimator, "E1'");
    EXPECT_NEAR(found.gamma_null.value, found.gamma_eff.value, 2.0);
    EXPECT_DOUBLE_EQ(found.gamma_eff.value, found.gamma_iv.value);
    alarms += !found.gamma_excess_ci.defined() || found.gamma_excess_ci.low > 0.0;
  }
  EXPECT_LE(alarms, 2);
}

TEST(LayerCongestion, ExpertsThatNoLogitTellsApartHaveNoGamma) {
  Trace trace = one_layer({.bias = std::vector<double>(8, 0.0),
                           .sigma = 1.0,
                           .top_k = 2,
                           .batches = 6,
                           .tokens = 50,
                           .sampled = 5});
  trace.layers[0].sum_logit.assign(trace.layers[0].sum_logit.size(), 0.0);
  const LayerCongestion found = analyse_congestion(trace, trace.layers[0]);
  EXPECT_EQ(found.gamma_eff.reason, "the experts' qualities do not differ");
  EXPECT_EQ(found.sigma_bias.value, 0.0);
  EXPECT_FALSE(found.gamma_excess_ci.defined());
}

TEST(LayerCongestion, PricesOnLoadAreFound) {
  const Trace trace = one_layer({.bias = normal_bias(16, 0.5),
                                 .sigma = 1.0,
                                 .top_k = 2,
                                 .batches = 20,
                                 .tokens = 200,
                                 .sampled = 100,
                                 .price = 10.0});
  const LayerCongestion found = analyse_congestion(trace, trace.layers[0]);
  ASSERT_TRUE(found.gamma_excess_ci.defined()) << found.gamma_excess_ci.reason;
  EXPECT_GT(found.gamma_excess_ci.low, 0.0);
  EXPECT_TRUE(found.gamma_ci.low < found.gamma_eff.value && found.gamma_eff.value < found.gamma_ci.high);
}

TEST(LayerCongestion, EveryExpertForEveryTokenHasNoNull) {
  const Trace trace = one_layer(
      {.bias = normal_bias(4, 0.2), .sigma = 1.0, .top_k = 4, .batches = 6, .tokens = 50, .sampled = 5});
  const LayerCongestion found = analyse_congestion(trace, trace.layers[0]);
  EXPECT_FALSE(found.gamma_null.defined());
  EXPECT_FALSE(found.gamma_probe.defined());
}

}  // namespace
}  // namespace exfusion::analysis
