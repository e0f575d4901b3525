#include "inspect/progress_line.h"

#include <fmt/format.h>

#include "core/duration.h"
#include "core/error.h"
#include "train/interrupt.h"

namespace exfusion {
namespace {

using Clock = std::chrono::steady_clock;

void check_interrupt() {
  if (const int signal = interrupt_signal(); signal != 0)
    throw Interrupted(fmt::format("stopped by signal {}: nothing was written", signal), signal);
}

}  // namespace

ProgressLine::ProgressLine(std::string what) : what_(std::move(what)), started_(Clock::now()) {}

void ProgressLine::operator()(double part) {
  check_interrupt();
  if (part <= 0.0) started_ = Clock::now();
  line_.show([&] {
    return fmt::format("{}: {:.0f} %, ETA {}", what_, 100.0 * part,
                       part > 0.0 ? clock_text(seconds_since(started_) * (1.0 - part) / part) : "?");
  });
}

}  // namespace exfusion
