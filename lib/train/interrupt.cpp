#include "train/interrupt.h"

#include <csignal>

namespace exfusion {
namespace {

volatile std::sig_atomic_t arrived = 0;

extern "C" void remember(int signal) {
  arrived = signal;
  std::signal(signal, SIG_DFL);
}

}  // namespace

InterruptScope::InterruptScope() {
  arrived = 0;
  std::signal(SIGINT, remember);
  std::signal(SIGTERM, remember);
}

InterruptScope::~InterruptScope() {
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
}

int interrupt_signal() {
  return arrived;
}

}  // namespace exfusion
