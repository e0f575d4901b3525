#include "dist/rank_words.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "core/last_words.h"

namespace exfusion {
namespace {

// What is on stderr when these (rank, words) have been said and all have ended.
std::string said_once(const std::vector<std::pair<int, std::string>>& last) {
  RankWords words;
  setenv("EXFUSION_LAST_WORDS", std::to_string(words.socket()).c_str(), 1);
  testing::internal::CaptureStderr();
  for (const auto& [rank, text] : last) {
    setenv("RANK", std::to_string(rank).c_str(), 1);
    say_last_words("exfusion-train", text);
  }
  words.collect(false);  // they may yet say the same
  const std::string early = testing::internal::GetCapturedStderr();
  testing::internal::CaptureStderr();
  words.collect(true);
  unsetenv("RANK");
  unsetenv("EXFUSION_LAST_WORDS");
  return early + testing::internal::GetCapturedStderr();
}

TEST(RankWords, AreSaidOnceWithAllWhoSayThem) {
  EXPECT_EQ(said_once({{3, "no data"}, {0, "lost"}, {1, "no data"}, {2, "no data"}}),
            "exfusion-train: ranks 1-3: no data\nexfusion-train: rank 0: lost\n");
}

TEST(RankWords, OfSeveralLinesHaveThemAllNamed) {
  EXPECT_EQ(said_once({{1, "a.yaml:1:1: x\na.yaml:2:1: y"}, {0, "a.yaml:1:1: x\na.yaml:2:1: y"}}),
            "exfusion-train: ranks 0-1: a.yaml:1:1: x\nexfusion-train: ranks 0-1: a.yaml:2:1: y\n");
}

TEST(RankWords, OfRank0AloneAreThoseOfAll) {
  EXPECT_EQ(said_once({{0, "stopped"}, {1, ""}}), "exfusion-train: stopped\n");
  EXPECT_EQ(said_once({{1, "stopped"}}), "exfusion-train: rank 1: stopped\n");
  EXPECT_EQ(said_once({}), "");
}

TEST(RankWords, WithoutAListenerGoToStderr) {
  testing::internal::CaptureStderr();
  say_last_words("exfusion-eval", "one\ntwo");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "exfusion-eval: one\nexfusion-eval: two\n");
}

}  // namespace
}  // namespace exfusion
