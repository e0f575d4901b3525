// Ctrl-C and SIGTERM as a flag that the loop looks at between steps. A second signal of the kind ends the
// process at once.
#pragma once

namespace exfusion {

// Installs the handlers for as long as the object lives.
class InterruptScope {
 public:
  InterruptScope();
  ~InterruptScope();
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;
};

int interrupt_signal();  // 0, or the signal that arrived

}  // namespace exfusion
