// Ctrl-C and SIGTERM as a flag that the loop looks at between steps. A second signal of the kind ends the
// process at once, with exit code 128 + signal.
#pragma once
#include <string>

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

// What a second signal of the kind writes to stderr from now on, one line; "": nothing. At most 4 kB. From
// one thread.
void set_words_at_second_signal(const std::string& line);

}  // namespace exfusion
