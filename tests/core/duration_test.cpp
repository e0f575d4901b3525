#include "core/duration.h"

#include <gtest/gtest.h>

#include "core/median.h"

namespace exfusion {
namespace {

using std::chrono::milliseconds;

TEST(Duration, ReadsNumbersWithUnits) {
  EXPECT_EQ(parse_duration("500ms"), milliseconds(500));
  EXPECT_EQ(parse_duration("6s"), milliseconds(6000));
  EXPECT_EQ(parse_duration("10m"), milliseconds(600000));
  EXPECT_EQ(parse_duration("1.5h"), milliseconds(5400000));
}

TEST(Duration, RefusesEverythingElse) {
  for (const char* text :
       {"", "6", "s", "6 s", "-6s", "0s", "0.1ms", "6sec", "1e3s", "nan s", "infs", "1001h", "6s "})
    EXPECT_EQ(parse_duration(text), std::nullopt) << text;
}

TEST(Duration, IsWrittenInSeconds) {
  EXPECT_EQ(duration_text(milliseconds(500)), "0.5 s");
  EXPECT_EQ(duration_text(milliseconds(600000)), "600 s");
}

TEST(Duration, IsWrittenAsOnAClock) {
  EXPECT_EQ(clock_text(-3.0), "0:00");
  EXPECT_EQ(clock_text(59.6), "1:00");
  EXPECT_EQ(clock_text(754.0), "12:34");
  EXPECT_EQ(clock_text(3723.4), "1:02:03");
}

TEST(Median, IsTheMiddleOrTheMeanOfTwo) {
  EXPECT_DOUBLE_EQ(median({3, 1, 2}), 2.0);
  EXPECT_DOUBLE_EQ(median({9, 2, 4, 5, 4, 4, 5, 7}), 4.5);
}

}  // namespace
}  // namespace exfusion
