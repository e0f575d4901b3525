// How far long work is: a line that redraws itself on a terminal, and plain log lines now and then elsewhere.
#pragma once
#include <chrono>
#include <string>

namespace exfusion {

class ProgressLine {
 public:
  explicit ProgressLine(std::string what);
  ~ProgressLine();
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;
  // `part` of the work is done, 0 to 1; the time that is left is estimated from the last 0 on. Throws
  // Interrupted if a signal has arrived (train/interrupt.h).
  void operator()(double part);

 private:
  std::string what_;
  std::chrono::steady_clock::time_point started_, drawn_, logged_;
};

}  // namespace exfusion
