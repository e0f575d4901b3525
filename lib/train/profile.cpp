#include "train/profile.h"

#include <fmt/format.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <numeric>
#include <set>
#include <sstream>
#include <utility>

#include "core/duration.h"
#include "core/log.h"
#include "core/median.h"

namespace exfusion {
namespace {

namespace profiler = torch::autograd::profiler;
using torch::profiler::impl::ActivityType;
using torch::profiler::impl::ProfilerConfig;
using Clock = std::chrono::steady_clock;

std::function<void(const char*)> phase_observer;

// Without input shapes, memory, stacks, FLOPs and modules: they cost time and are not needed to see where it
// goes.
void start_tracing() {
  const ProfilerConfig config(torch::profiler::impl::ProfilerState::KINETO);
  const std::set<ActivityType> activities = {ActivityType::CPU};
  profiler::prepareProfiler(config, activities);
  profiler::enableProfiler(config, activities);
}

}  // namespace

void observe_phases(std::function<void(const char*)> entered) {
  phase_observer = std::move(entered);
}

PhaseScope::PhaseScope(Phase phase, PhaseSeconds& seconds, const ProcessGroup* group)
    : seconds_(seconds),
      phase_(static_cast<std::size_t>(phase)),
      group_(group),
      waited_(group ? group->seconds_waited() : 0.0),
      range_(at::RecordScope::USER_SCOPE) {
  if (range_.isActive()) range_.before(kPhases[phase_]);
  if (phase_observer) phase_observer(kPhases[phase_]);
  start_ = Clock::now();
}

PhaseScope::~PhaseScope() {
  const double waited = group_ ? group_->seconds_waited() - waited_ : 0.0;
  seconds_[phase_] += seconds_since(start_) - waited;
  seconds_[static_cast<std::size_t>(Phase::reduce)] += waited;
}

std::string profile_table(std::span<const ProfiledStep> steps) {
  double whole = 0.0;
  for (const ProfiledStep& step : steps) whole += step.seconds;
  std::string text = fmt::format("{:<12}{:>12}{:>9}\n", "phase", "ms", "share");
  const auto row = [&](const char* name, const auto& value) {
    std::vector<double> values;
    for (const ProfiledStep& step : steps) values.push_back(value(step));
    const double share = std::accumulate(values.begin(), values.end(), 0.0) / whole;
    text += fmt::format("{:<12}{:>12.3f}{:>7.1f} %\n", name, 1e3 * median(std::move(values)), 100.0 * share);
  };
  for (std::size_t i = 0; i < kPhases.size(); ++i)
    row(kPhases[i], [&](const ProfiledStep& step) { return step.phases[i]; });
  row("other", [](const ProfiledStep& step) {
    return step.seconds - std::accumulate(step.phases.begin(), step.phases.end(), 0.0);
  });
  row("step", [](const ProfiledStep& step) { return step.seconds; });
  return text;
}

Profile::Profile(std::int64_t steps, std::filesystem::path trace) : steps_(steps), trace_(std::move(trace)) {
  // Kineto greets on stderr, at levels up to 6; whoever wants to hear it sets the variable.
  if (steps_ > 0) setenv("KINETO_LOG_LEVEL", "99", /*overwrite=*/0);
}

Profile::~Profile() {
  try {
    if (tracing_) finish();
    if (steps_ > 0 && seen_ > 0 && seen_ <= kWarmUp)
      log_warning("profile: nothing: the run ended within the {} steps of warm-up", kWarmUp);
  } catch (const std::exception& error) {
    log_warning("profile: {}", error.what());
  }
}

void Profile::begin_step() {
  if (seen_ >= kWarmUp + steps_) return;
  if (seen_++ < kWarmUp) return;
  if (!tracing_) start_tracing();
  tracing_ = true;
  range_.emplace(at::RecordScope::USER_SCOPE);
  if (range_->isActive()) range_->before("step");
  start_ = Clock::now();
}

void Profile::end_step(const PhaseSeconds& phases) {
  if (!range_) return;
  profiled_.push_back({phases, seconds_since(start_)});
  range_.reset();
  if (static_cast<std::int64_t>(profiled_.size()) == steps_) finish();
}

void Profile::finish() {
  tracing_ = false;
  range_.reset();
  const auto result = profiler::disableProfiler();
  if (profiled_.empty()) return;
  result->save(trace_.string());
  log_info(
      "profile: medians of {} steps (shares: of their sum) after {} of warm-up, the profiler's own cost in "
      "them; operators: {}",
      profiled_.size(), kWarmUp, trace_.string());
  std::istringstream lines(profile_table(profiled_));
  for (std::string line; std::getline(lines, line);) log_info("  {}", line);
}

}  // namespace exfusion
