#include "inspect/progress_line.h"

#include <gtest/gtest.h>

#include <csignal>

#include "core/error.h"
#include "train/interrupt.h"

namespace exfusion {
namespace {

TEST(ProgressLine, ASignalEndsTheWorkAtTheNextPoint) {
  const InterruptScope interrupts;
  ProgressLine progress("work");
  EXPECT_NO_THROW(progress(0.5));
  std::raise(SIGINT);
  try {
    progress(0.6);
    FAIL() << "went on";
  } catch (const Interrupted& error) {
    EXPECT_EQ(error.exit_code, 130);
    EXPECT_STREQ(error.what(), "stopped by signal 2: nothing was written");
  }
}

}  // namespace
}  // namespace exfusion
