// A line that says how far work is: it redraws itself on a terminal, and is logged now and then everywhere.
#pragma once
#include <chrono>
#include <functional>
#include <string>

namespace exfusion {

// One at a time: the log clears it before each of its own lines.
class TerminalLine {
 public:
  TerminalLine();
  ~TerminalLine();  // removes the line from the terminal
  TerminalLine(const TerminalLine&) = delete;
  TerminalLine& operator=(const TerminalLine&) = delete;
  // Draws or logs `text()` if it is time to; `log_now`: logs it in any case.
  void show(const std::function<std::string()>& text, bool log_now = false);

 private:
  std::chrono::steady_clock::time_point drawn_, logged_;
};

}  // namespace exfusion
