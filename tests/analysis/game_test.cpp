#include "analysis/game.h"

#include <cmath>

#include "analysis/draws.h"
#include "vectors.h"

namespace exfusion::analysis {
namespace {

TEST(Game, EquilibriaOfThePublishedVectors) {
  const json file = vectors("a2_equilibrium");
  for (const json& one : file.at("cases")) {
    const json& inputs = one.at("inputs");
    if (!inputs.contains("q") || inputs.contains("m_measured")) continue;
    expect_key(one, "m", *equilibrium_shares(numbers(inputs.at("q")), inputs.at("gamma")));
  }
}

TEST(Game, GapsOfThePublishedVectors) {
  const json at = vector_case("a2_equilibrium", "a1_solver");
  const json off = vector_case("a2_equilibrium", "gaps_off_equilibrium");
  const std::vector<double> q = numbers(at.at("inputs").at("q")), m = numbers(at.at("expected").at("m"));
  const std::vector<double> measured = numbers(off.at("inputs").at("m_measured"));
  expect_key(at, "epsilon_nash", nash_gap(q, m, 10.0));
  expect_key(off, "epsilon_l1", l1_distance(measured, *equilibrium_shares(q, 10.0)));
  expect_key(off, "epsilon_nash", nash_gap(q, measured, 10.0));
}

TEST(Game, SlopesOfThePublishedVectors) {
  const json file = vectors("a2_sensitivity");
  for (const json& one : file.at("cases")) {
    const json& inputs = one.at("inputs");
    const double gamma = inputs.at("gamma");
    const std::vector<double> m =
        inputs.contains("m") ? numbers(inputs.at("m")) : *equilibrium_shares(numbers(inputs.at("q")), gamma);
    std::vector<double> slope = log_share_slope(m, gamma);
    for (std::size_t i = 0; i < m.size(); ++i) slope[i] *= m[i];
    expect_key(one, "dm_dgamma", slope);
  }
}

// Each layer's qualities are the other's loads times `c` (identity - 1/3 off the diagonal).
TEST(Game, TwoCoupledLayersSettleWhereThePublishedVectorsSay) {
  const json file = vectors("a5_small_gain");
  for (const json& one : file.at("cases")) {
    const json& inputs = one.at("inputs");
    const double c = inputs.at("c");
    const auto answer = [&](const std::vector<double>& load) {
      std::vector<double> q;
      for (const double share : load) q.push_back(c * (share - (1.0 - share) / 3.0));
      return *equilibrium_shares(q, inputs.at("gamma"));
    };
    std::vector<double> second = numbers(inputs.at("start_m2")), first;
    for (int round = 0; round < 1000; ++round) second = answer(first = answer(second));
    expect_key(one, "fixed_point_m1_from_start", first);
  }
}

TEST(Game, TheSlopeIsThatOfTheSolutionAlsoForNegativeGamma) {
  const std::vector<double> q = {1.2, -0.4, 0.3, 0.0, -1.1, 0.8};
  for (const double gamma : {-1.5, 0.0, 6.0, 300.0}) {
    const double h = 1e-5;
    const std::vector<double> up = *equilibrium_shares(q, gamma + h),
                              down = *equilibrium_shares(q, gamma - h);
    const std::vector<double> slope = log_share_slope(*equilibrium_shares(q, gamma), gamma);
    for (std::size_t i = 0; i < q.size(); ++i)
      EXPECT_NEAR(std::log(up[i] / down[i]) / (2.0 * h), slope[i], 1e-8);
  }
}

TEST(Game, EverySolutionSatisfiesTheEquationsHoweverFarTheQualitiesLieApart) {
  for (std::uint32_t trial = 0; trial < 200; ++trial) {
    CounterRandom random(7, Draw::synthetic, 0, trial);
    std::vector<double> q(2 + random.below(100));
    const double spread = std::exp(random.uniform(-3.0, 3.0)), gamma = std::exp(random.uniform(-5.0, 14.0));
    for (double& one : q) one = spread * random.normal();
    Equilibrium at;
    ASSERT_TRUE(solve_game(q, gamma, at))
        << "experts " << q.size() << " spread " << spread << " gamma " << gamma;
    double total = 0.0;
    for (std::size_t i = 0; i < q.size(); ++i) {
      total += at.m[i];
      EXPECT_NEAR(at.x[i] + gamma * at.m[i], at.c + q[i], 1e-9 * (1.0 + std::abs(at.c)));
    }
    EXPECT_NEAR(total, 1.0, 1e-11);
  }
}

TEST(Game, NoEquilibriumBeyondTheEndOfTheBranch) {
  const std::vector<double> q = {1.0, 0.0, -0.5, -0.5};
  EXPECT_TRUE(equilibrium_shares(q, -1.0));
  EXPECT_FALSE(equilibrium_shares(q, -50.0));
}

TEST(Game, TemperatureReductionOfThePublishedVectors) {
  for (const char* name : {"reduction_sd_0.25", "reduction_sd_0.5", "reduction_sd_1"}) {
    const json one = vector_case("a2_temperature", name);
    const std::vector<double> q = numbers(one.at("inputs").at("q")),
                              gammas = numbers(one.at("inputs").at("gamma"));
    std::vector<double> to_softmax, to_uniform;
    for (const double gamma : gammas) {
      const std::vector<double> m = *equilibrium_shares(q, gamma);
      to_softmax.push_back(l1_distance(m, softmax(q, 1.0 + gamma / 64.0)));
      to_uniform.push_back(l1_distance(m, std::vector<double>(64, 1.0 / 64.0)));
    }
    expect_key(one, "l1_mfg_vs_softmax_T_first_order", to_softmax);
    expect_key(one, "l1_mfg_vs_uniform", to_uniform);
  }
}

TEST(MultiTypeGame, LoadsOfThePublishedVectors) {
  const json file = vectors("a6_multitype");
  for (const json& one : file.at("cases")) {
    const json& inputs = one.at("inputs");
    expect_key(one, "A",
               multi_type_shares(table(inputs.at("q")), numbers(inputs.at("w")), inputs.at("gamma")));
  }
}

}  // namespace
}  // namespace exfusion::analysis
