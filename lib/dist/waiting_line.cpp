#include "dist/waiting_line.h"

#include <algorithm>

#include "core/duration.h"
#include "core/log.h"

namespace exfusion {

std::chrono::milliseconds WaitingLine::left() const {
  const auto waited = std::chrono::floor<std::chrono::milliseconds>(Clock::now() - start_);
  return std::max(std::chrono::milliseconds(0), timeout_ - waited);
}

void WaitingLine::say_if_due(const std::function<std::string()>& what) {
  const auto waited = timeout_ - left();
  if (waited < next_) return;
  log_info("{} ({} of dist.timeout, {})", what(),
           duration_text(std::chrono::floor<std::chrono::seconds>(waited)), duration_text(timeout_));
  next_ *= 4;
}

}  // namespace exfusion
