#include "inspect/progress_line.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

#include "core/duration.h"
#include "core/error.h"
#include "core/log.h"
#include "train/interrupt.h"
#include "train/progress.h"

namespace exfusion {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kRedraw{200};
constexpr std::chrono::seconds kLog{20};

bool drawn_line = false;  // whether the terminal's last line is ours

void clear_line() {
  if (drawn_line) std::fputs("\r\033[K", stderr);
  drawn_line = false;
}

void check_interrupt() {
  if (const int signal = interrupt_signal(); signal != 0)
    throw Interrupted(fmt::format("stopped by signal {}: nothing was written", signal), signal);
}

}  // namespace

ProgressLine::ProgressLine(std::string what)
    : what_(std::move(what)), started_(Clock::now()), drawn_(started_), logged_(started_) {
  log_before_line(clear_line);
}

ProgressLine::~ProgressLine() {
  clear_line();
  log_before_line({});
}

void ProgressLine::operator()(double part) {
  check_interrupt();
  const Clock::time_point now = Clock::now();
  if (part <= 0.0) started_ = now;
  const double seconds = std::chrono::duration<double>(now - started_).count();
  const auto line = [&] {
    return fmt::format("{}: {:.0f} %, ETA {}", what_, 100.0 * part,
                       part > 0.0 ? clock_text(seconds * (1.0 - part) / part) : "?");
  };
  if (now - logged_ > kLog) {
    log_line_info(line());
    logged_ = now;
  } else if (now - drawn_ > kRedraw && isatty(STDERR_FILENO) == 1) {
    std::fputs(("\r\033[K" + line()).c_str(), stderr);
    std::fflush(stderr);
    drawn_line = true;
    drawn_ = now;
  }
}

}  // namespace exfusion
