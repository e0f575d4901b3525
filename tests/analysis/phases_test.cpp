#include "analysis/phases.h"

#include <cmath>

#include "core/random.h"
#include "vectors.h"

namespace exfusion::analysis {
namespace {

TEST(Phases, FitsOfThePublishedCurves) {
  const json file = vectors("a7_phases");
  for (const json& one : file.at("cases")) {
    const std::vector<double> steps = numbers(one.at("inputs").at("steps"));
    const std::vector<double> gamma = numbers(one.at("inputs").at("gamma"));
    const PhaseFit single = fit_phases(steps, gamma, 1), twice = fit_phases(steps, gamma, 2);
    expect_key(one, "sse_0_breaks", fit_phases(steps, gamma, 0).sse);
    expect_key(one, "sse_1_break", single.sse);
    expect_key(one, "break_1_grid_index", static_cast<double>(single.grid_index.at(0)));
    expect_key(one, "sse_2_breaks", twice.sse);
    expect_key(one, "break_grid_indices",
               std::vector<double>(twice.grid_index.begin(), twice.grid_index.end()));
    expect_key(one, "breaks_steps", twice.break_steps);
    expect_key(one, "slopes_per_e_fold", twice.slopes);
  }
}

TEST(Phases, ThreePhasesAreClaimed) {
  const json one = vector_case("a7_phases", "noise_sd_1.5_draw_1");
  const Phases found =
      find_phases(numbers(one.at("inputs").at("steps")), numbers(one.at("inputs").at("gamma")));
  EXPECT_EQ(found.claimed, 2u);
  EXPECT_EQ(found.best_by_bic, 2u);
}

TEST(Phases, NoiseAroundALineHasOne) {
  const std::vector<double> steps = numbers(vector_case("a7_phases", "noiseless").at("inputs").at("steps"));
  int claimed = 0, by_bic = 0;
  constexpr int kCurves = 40;
  for (std::uint32_t curve = 0; curve < kCurves; ++curve) {
    CounterRandom random(6, Draw::synthetic, 3, curve);
    std::vector<double> values;
    for (const double step : steps) values.push_back(3.0 * std::log(step) + random.normal());
    const Phases found = find_phases(steps, values);
    claimed += found.claimed > 0;
    by_bic += found.best_by_bic > 0;
  }
  EXPECT_LE(claimed, 6);       // 5 % of 40 are 2; more than 6 have a probability of 0.4 %
  EXPECT_GT(by_bic, claimed);  // which is why BIC alone decides nothing
}

TEST(Phases, NeedEightCheckpointsThatVary) {
  const std::vector<double> steps = {1, 2, 4, 8, 16, 32, 64};
  EXPECT_EQ(find_phases(steps, steps).reason, "fewer than 8 checkpoints");
  const std::vector<double> more = {1, 2, 4, 8, 16, 32, 64, 128};
  EXPECT_EQ(find_phases(more, std::vector<double>(8, 2.0)).reason, "the values do not vary");
}

}  // namespace
}  // namespace exfusion::analysis
