// How far long work is, with an estimate of the time that is left.
#pragma once
#include <chrono>
#include <string>

#include "core/terminal_line.h"

namespace exfusion {

class ProgressLine {
 public:
  explicit ProgressLine(std::string what);
  // `part` of the work is done, 0 to 1; the time that is left is estimated from the last 0 on. Throws
  // Interrupted if a signal has arrived (train/interrupt.h).
  void operator()(double part);

 private:
  std::string what_;
  std::chrono::steady_clock::time_point started_;
  TerminalLine line_;
};

}  // namespace exfusion
