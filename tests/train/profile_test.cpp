#include "train/profile.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "dist/ranks.h"

namespace exfusion {
namespace {

TEST(PhaseScope, AddsItsLifeToItsPhaseAlone) {
  PhaseSeconds phases{};
  for (int round = 0; round < 2; ++round) {
    const PhaseScope phase(Phase::clip, phases);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  EXPECT_GE(phases[static_cast<std::size_t>(Phase::clip)], 4e-3);
  phases[static_cast<std::size_t>(Phase::clip)] = 0.0;
  EXPECT_EQ(phases, PhaseSeconds{});
}

TEST(PhaseScope, WaitingForOtherRanksIsReduce) {
  with_ranks(2, [](const ProcessGroup& group) {
    PhaseSeconds phases{};
    group.barrier();
    const double before = group.seconds_waited();
    {
      const PhaseScope phase(Phase::update, phases, &group);
      if (group.rank() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(300));
      group.barrier();
    }
    const double update = phases[static_cast<std::size_t>(Phase::update)],
                 reduce = phases[static_cast<std::size_t>(Phase::reduce)];
    EXPECT_EQ(reduce, group.seconds_waited() - before);
    EXPECT_GE(group.rank() == 1 ? update : reduce, 0.1);
  });
}

// The figures of the row that starts so.
std::vector<double> figures(const std::string& table, const std::string& name) {
  std::istringstream lines(table);
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with(name)) continue;
    std::istringstream text(line.substr(name.size()));
    std::vector<double> found(2);
    text >> found[0] >> found[1];
    return found;
  }
  return {};
}

TEST(ProfileTable, ShowsMediansInMillisecondsAndSharesOfAllSteps) {
  std::vector<ProfiledStep> steps(3);
  const auto forward = static_cast<std::size_t>(Phase::forward);
  const auto update = static_cast<std::size_t>(Phase::update);
  steps[0] = {.seconds = 0.010}, steps[1] = {.seconds = 0.020}, steps[2] = {.seconds = 0.500};
  for (ProfiledStep& step : steps) step.phases[forward] = 0.6 * step.seconds;
  for (ProfiledStep& step : steps) step.phases[update] = 0.003;
  const std::string table = profile_table(steps);
  EXPECT_EQ(figures(table, "step"), (std::vector<double>{20.0, 100.0})) << table;
  EXPECT_EQ(figures(table, "forward"), (std::vector<double>{12.0, 60.0})) << table;
  EXPECT_EQ(figures(table, "update"), (std::vector<double>{3.0, 1.7})) << table;
  EXPECT_EQ(figures(table, "data wait"), (std::vector<double>{0.0, 0.0})) << table;
  EXPECT_EQ(figures(table, "other"), (std::vector<double>{5.0, 38.3})) << table;
  steps.pop_back();  // the median of two is their mean
  EXPECT_EQ(figures(profile_table(steps), "step")[0], 15.0);
}

}  // namespace
}  // namespace exfusion
