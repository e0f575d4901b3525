#include "core/terminal_line.h"

#include <gtest/gtest.h>

#include "core/log.h"

namespace exfusion {
namespace {

TEST(TerminalLine, IsLoggedWhenAskedAndElseOnlyWhenItIsTime) {
  testing::internal::CaptureStderr();
  int made = 0;
  {
    TerminalLine line;
    const auto text = [&] { return "part " + std::to_string(++made); };
    line.show(text);
    line.show(text);
    EXPECT_EQ(made, 0) << "the text is made though it is not shown";
    line.show(text, /*log_now=*/true);
    log_info("between");
  }
  log_info("after");
  const std::string shown = testing::internal::GetCapturedStderr();
  EXPECT_EQ(made, 1);
  EXPECT_NE(shown.find("part 1\n"), std::string::npos) << shown;
  EXPECT_LT(shown.find("part 1"), shown.find("between"));
  EXPECT_LT(shown.find("between"), shown.find("after"));
}

}  // namespace
}  // namespace exfusion
