#include "train/interrupt.h"

#include <gtest/gtest.h>

#include <csignal>
#include <string>

namespace exfusion {
namespace {

TEST(Interrupt, TheFirstSignalIsRemembered) {
  const InterruptScope scope;
  EXPECT_EQ(interrupt_signal(), 0);
  std::raise(SIGTERM);
  EXPECT_EQ(interrupt_signal(), SIGTERM);
  std::raise(SIGINT);  // the first of its kind
  EXPECT_EQ(interrupt_signal(), SIGINT);
}

void signal_twice(int signal) {
  const InterruptScope scope;
  set_words_at_second_signal("too early");
  std::raise(signal);
  set_words_at_second_signal("what is left");
  std::raise(signal);
}

TEST(InterruptDeathTest, ASecondOneOfItsKindEndsTheProcessWithTheLatestWords) {
  EXPECT_EXIT(signal_twice(SIGINT), testing::ExitedWithCode(130), "^what is left\n$");
  EXPECT_EXIT(signal_twice(SIGTERM), testing::ExitedWithCode(143), "^what is left\n$");
}

}  // namespace
}  // namespace exfusion
