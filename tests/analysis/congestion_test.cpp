#include "analysis/congestion.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "analysis/draws.h"
#include "analysis/imbalance.h"
#include "vectors.h"

namespace exfusion::analysis {
namespace {

double likelihood(const std::vector<double>& q, const std::vector<double>& m) {
  Equilibrium at;
  const Likelihood found = gamma_likelihood(q, m, at);
  EXPECT_TRUE(found.value);
  return found.value.value_or(NAN);
}

TEST(Estimators, OfThePublishedVectors) {
  const json file = vectors("a3_estimators");
  for (const json& one : file.at("cases")) {
    const json& inputs = one.at("inputs");
    const std::vector<double> q = numbers(inputs.at("q"));
    std::vector<double> all, a, b;
    if (inputs.contains("mh")) {
      all = numbers(inputs.at("mh"));
      a = numbers(inputs.at("mA"));
      b = numbers(inputs.at("mB"));
    } else {
      const std::vector<double> counts_a = numbers(inputs.at("counts_A")),
                                counts_b = numbers(inputs.at("counts_B"));
      std::vector<double> counts(counts_a.size());
      std::ranges::transform(counts_a, counts_b, counts.begin(), std::plus<>());
      all = smoothed_shares(counts);
      a = smoothed_shares(counts_a);
      b = smoothed_shares(counts_b);
    }
    expect_key(one, "E1_ols", *gamma_least_squares(q, all));
    expect_key(one, "E1p_split_half_iv", *gamma_instrumental(q, a, b));
    expect_key(one, "E2_l1", fit_game_l1(q, all, 0.0, 400.0).parameter);
    expect_key(one, "E3_ml", likelihood(q, all));
  }
}

TEST(Estimators, AnotherScaleOfQualityIsAnotherGamma) {
  const json one = vector_case("a7_scale", "rescaled_quality");
  const std::vector<double> scales = numbers(one.at("inputs").at("s"));
  std::vector<double> m = numbers(one.at("inputs").at("counts")), gammas, distances;
  for (double& share : m) share /= 100000.0;
  for (const double scale : scales) {
    std::vector<double> q = numbers(one.at("inputs").at("q"));
    for (double& value : q) value *= scale;
    gammas.push_back(likelihood(q, m));
    distances.push_back(l1_distance(m, *equilibrium_shares(q, gammas.back())));
  }
  expect_key(one, "gamma_E3_ml", gammas);
  expect_key(one, "l1_fit", distances);
}

TEST(Estimators, TemperaturesOfThePublishedVectors) {
  for (const char* name : {"reduction_sd_0.25", "reduction_sd_0.5", "reduction_sd_1"}) {
    const json one = vector_case("a2_temperature", name);
    const std::vector<double> q = numbers(one.at("inputs").at("q"));
    std::vector<double> temperatures, distances, largest;
    for (const double gamma : numbers(one.at("inputs").at("gamma"))) {
      const std::vector<double> m = *equilibrium_shares(q, gamma);
      temperatures.push_back(*fitted_temperature(q, m));
      distances.push_back(l1_distance(m, softmax(q, temperatures.back())));
      largest.push_back(imbalance(m).max_mean);
    }
    expect_key(one, "T_fit_kl", temperatures);
    expect_key(one, "l1_mfg_vs_softmax_T_fit", distances);
    expect_key(one, "max_over_mean", largest);
  }
}

TEST(Estimators, L1FitsOfEightTypes) {
  const json one = vector_case("a6_multitype", "eight_heterogeneous_types");
  const std::vector<double> q = table(one.at("inputs").at("q")), m = numbers(one.at("expected").at("A"));
  std::vector<double> mean(64, 0.0);
  for (std::size_t i = 0; i < q.size(); ++i) mean[i % 64] += q[i] / 8.0;
  const ShareFit game = fit_game_l1(mean, m, 0.0, 400.0), temperature = fit_temperature_l1(mean, m);
  expect_key(one, "single_type_gamma_l1", game.parameter);
  expect_key(one, "l1_single_type", game.l1);
  expect_key(one, "softmax_T_l1", temperature.parameter);
  expect_key(one, "l1_softmax_T", temperature.l1);
}

TEST(Estimators, ALoadMoreConcentratedThanQualityHasANegativeGamma) {
  const std::vector<double> q = {0.3, 0.1, 0.0, -0.1, -0.3};
  const std::vector<double> m = *equilibrium_shares(q, -2.0);
  EXPECT_NEAR(likelihood(q, m), -2.0, 1e-8);
}

TEST(Estimators, FarBelowZeroTheInstrumentsAnswer) {
  const std::vector<double> q = {0.03, 0.01, 0.0, -0.01, -0.03};
  const std::vector<double> m = {0.6, 0.2, 0.1, 0.06, 0.04};
  Equilibrium at;
  const Gamma gamma = estimate_gamma(q, m, m, m, at);
  EXPECT_EQ(gamma.estimator, "E1'");
  EXPECT_NEAR(gamma.value.value(), *gamma_least_squares(q, m), 1e-12);
  EXPECT_LT(*gamma.value, -1.0 / 0.6);
}

TEST(Estimators, WithoutAFiniteAnswerSayWhy) {
  Equilibrium at;
  const std::vector<double> m = {0.4, 0.3, 0.3}, uniform(3, 1.0 / 3.0);
  EXPECT_EQ(estimate_gamma(std::vector<double>{-1, 0, 0}, m, m, m, at).reason,
            "the load does not rise with quality: no finite estimate");
  EXPECT_EQ(estimate_gamma(std::vector<double>{2, 2, 2}, m, m, m, at).reason,
            "the experts' qualities do not differ");
  EXPECT_FALSE(gamma_least_squares(m, uniform));
  EXPECT_FALSE(gamma_instrumental(m, m, uniform));
  EXPECT_FALSE(fitted_temperature(std::vector<double>{-1, 0, 0}, m));
}

// Independent draws of experts from shares m.
std::vector<double> multinomial(const std::vector<double>& m, int slots, std::uint32_t draw_number) {
  CounterRandom random(3, Draw::synthetic, 0, draw_number);
  std::vector<double> ends(m.size()), counts(m.size(), 0.0);
  std::partial_sum(m.begin(), m.end(), ends.begin());
  for (int slot = 0; slot < slots; ++slot)
    counts[std::min<std::size_t>(
        static_cast<std::size_t>(std::ranges::upper_bound(ends, random.uniform()) - ends.begin()),
        m.size() - 1)] += 1.0;
  return counts;
}

TEST(Estimators, LoadNoiseFoolsLeastSquaresAndNotTheOthers) {
  std::vector<double> q(64);
  CounterRandom random(4, Draw::synthetic);
  for (double& one : q) one = 0.5 * random.normal();
  const std::vector<double> truth = *equilibrium_shares(q, 27.0);
  double least_squares = 0.0, instruments = 0.0, most_likely = 0.0;
  constexpr int kDraws = 24;
  for (std::uint32_t i = 0; i < kDraws; ++i) {
    const std::vector<double> a = multinomial(truth, 1000, 2 * i), b = multinomial(truth, 1000, 2 * i + 1);
    std::vector<double> all(64);
    std::ranges::transform(a, b, all.begin(), std::plus<>());
    least_squares += *gamma_least_squares(q, smoothed_shares(all)) / kDraws;
    instruments += *gamma_instrumental(q, smoothed_shares(a), smoothed_shares(b)) / kDraws;
    most_likely += likelihood(q, smoothed_shares(all)) / kDraws;
  }
  EXPECT_LT(least_squares, 15.0);
  EXPECT_NEAR(instruments, 27.0, 5.0);  // a single draw has a standard deviation of 8
  EXPECT_NEAR(most_likely, 27.0, 5.0);
}

TEST(ExplicitPart, OfThePublishedVectors) {
  expect_key(vector_case("a5_explicit_price", "f_sums_to_1"), "gamma_explicit", explicit_price(0.01, 64));
  expect_key(vector_case("a5_explicit_price", "f_sums_to_K"), "gamma_explicit", explicit_price(0.01, 64, 8));
}

TEST(ExplicitPart, OfASelectionBiasThatIsAPrice) {
  const std::vector<double> m = {0.4, 0.3, 0.2, 0.1}, bias = {-2.8, -2.1, -1.4, -0.7};
  EXPECT_NEAR(selection_bias_price(bias, m).value(), 7.0, 1e-12);
}

}  // namespace
}  // namespace exfusion::analysis
