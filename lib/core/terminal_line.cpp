#include "core/terminal_line.h"

#include <unistd.h>

#include <cstdio>

#include "core/log.h"

namespace exfusion {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kRedraw{100};
constexpr std::chrono::seconds kLog{20};

bool drawn_line = false;  // whether the terminal's last line is ours

void clear() {
  if (!drawn_line) return;
  std::fputs("\r\033[K", stderr);
  drawn_line = false;
}

bool on_terminal() {
  static const bool terminal = isatty(STDERR_FILENO) == 1;
  return terminal;
}

}  // namespace

TerminalLine::TerminalLine() : drawn_(Clock::now()), logged_(drawn_) {
  log_before_line(clear);
}

TerminalLine::~TerminalLine() {
  clear();
  log_before_line({});
}

void TerminalLine::show(const std::function<std::string()>& text, bool log_now) {
  const Clock::time_point now = Clock::now();
  if (log_now || now - logged_ >= kLog) {
    log_line_info(text());
    logged_ = now;
  } else if (on_terminal() && now - drawn_ >= kRedraw) {
    std::fputs(("\r\033[K" + text()).c_str(), stderr);
    std::fflush(stderr);
    drawn_line = true;
    drawn_ = now;
  }
}

}  // namespace exfusion
