// Says now and then whom a rank waits for at the start: after 3 s, and then ever more rarely.
#pragma once
#include <chrono>
#include <functional>
#include <string>

namespace exfusion {

class WaitingLine {
 public:
  explicit WaitingLine(std::chrono::milliseconds timeout) : timeout_(timeout) {}
  std::chrono::milliseconds left() const;  // until the wait is over, at least 0
  // Once a line is due: logs `what()` (for example "waiting for ranks 2-3 of 4"), the time waited and the
  // timeout.
  void say_if_due(const std::function<std::string()>& what);

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point start_ = Clock::now();
  std::chrono::milliseconds timeout_;
  std::chrono::milliseconds next_{3000};
};

}  // namespace exfusion
