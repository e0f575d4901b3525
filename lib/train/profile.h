// Where the time of a training step goes: clocks that always run, and on request a table and a trace of some
// steps.
#pragma once
#include <ATen/record_function.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dist/process_group.h"

namespace exfusion {

// reduce: what ranks wait for each other's sums and weights, in whatever phase, and the sums of what arrived.
// update: zeroed gradients, optimizer, fused weights, weight average. logging: rows, events, progress.
// analysis: of the recipe's section, at its due steps.
enum class Phase { data_wait, forward, backward, reduce, clip, update, logging, analysis };
inline constexpr std::array<const char*, 8> kPhases = {"data wait", "forward", "backward", "reduce",
                                                       "clip",      "update",  "logging",  "analysis"};
using PhaseSeconds = std::array<double, kPhases.size()>;

// `entered` is called with the name of each phase that begins from now on, on the thread that enters it; {}:
// nobody.
void observe_phases(std::function<void(const char* phase)> entered);

// Adds the seconds of its life to one phase, but those of waiting in the collectives of `group` to `reduce`;
// and is a range of that name in a trace. Without a trace it costs two looks at the clock.
class PhaseScope {
 public:
  PhaseScope(Phase phase, PhaseSeconds& seconds, const ProcessGroup* group = nullptr);
  ~PhaseScope();
  PhaseScope(const PhaseScope&) = delete;
  PhaseScope& operator=(const PhaseScope&) = delete;

 private:
  PhaseSeconds& seconds_;
  std::size_t phase_;
  const ProcessGroup* group_;
  double waited_;  // before it
  at::RecordFunction range_;
  std::chrono::steady_clock::time_point start_;
};

struct ProfiledStep {
  PhaseSeconds phases{};
  double seconds = 0.0;  // of the whole step
};

// Median milliseconds of each phase, of what no phase holds ("other") and of the step, and their shares of
// the step's median. At least one step.
std::string profile_table(std::span<const ProfiledStep> steps);

// Lets kWarmUp steps pass, then profiles up to `steps` steps of this thread with libtorch's profiler (0:
// none, ever): logs the table and writes the operators and phases as a Chrome trace, which chrome://tracing
// and Perfetto show. When training ends earlier, the steps so far are the profile. One at a time in a
// process.
class Profile {
 public:
  static constexpr std::int64_t kWarmUp = 3;  // threads, caches and allocations settle in the first steps
  Profile(std::int64_t steps, std::filesystem::path trace);
  ~Profile();
  Profile(const Profile&) = delete;
  Profile& operator=(const Profile&) = delete;
  void begin_step();
  void end_step(const PhaseSeconds& phases);

 private:
  void finish();

  std::int64_t steps_, seen_ = 0;
  std::filesystem::path trace_;
  std::vector<ProfiledStep> profiled_;
  std::optional<at::RecordFunction> range_;  // of the step under way
  std::chrono::steady_clock::time_point start_;
  bool tracing_ = false;
};

}  // namespace exfusion
