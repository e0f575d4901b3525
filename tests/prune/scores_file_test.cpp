#include "prune/scores_file.h"

#include <gtest/gtest.h>

#include <fstream>

#include "core/error.h"
#include "support/test_folder.h"

namespace exfusion {
namespace {

class ScoresFile : public testing::Test {
 protected:
  std::filesystem::path write(const std::string& text) {
    std::ofstream(folder_ / "scores") << text;
    return folder_ / "scores";
  }
  TestFolder folder_;
};

TEST_F(ScoresFile, ReadsTheValuesOfEachLayerFromJson) {
  const auto file = write(
      R"({"layers": [{"layer": 3, "scores": {"man": {"b": 1, "values": [1, 2.5]}, "gate_norm": {"values": [7, 8]}}},
                     {"layer": 0, "scores": {"man": {"values": [0, -1e3]}, "gate_norm": {"values": [5, 6]}}}]})");
  EXPECT_EQ(read_scores(file, "man"), (ScoresByLayer{{0, {0, -1000}}, {3, {1, 2.5}}}));
  EXPECT_EQ(read_scores(file, "s_011"), (ScoresByLayer{{0, {5, 6}}, {3, {7, 8}}}));
  EXPECT_EQ(read_scores(file, "s_101"), read_scores(file, "man"));
}

TEST_F(ScoresFile, ReadsATraceOfCounts) {
  const auto file = write("layer,domain,expert,count\n2,a,0,5\n2,a,1,3\n2,b,1,4\n");
  EXPECT_EQ(read_scores(file, "frequency"), (ScoresByLayer{{2, {5, 7}}}));
  EXPECT_THROW(read_scores(file, "msan"), FormatError);
  EXPECT_THROW(read_scores(file, "taylor"), FormatError);
}

TEST_F(ScoresFile, RefusesOtherDocuments) {
  for (
      const char* text :
      {R"({})", R"({"layers": 3})", R"({"layers": [1]})", R"({"layers": [{"layer": 0}]})",
       R"({"layers": [{"layer": "0", "scores": {"man": {"values": [1]}}}]})",
       R"({"layers": [{"layer": -1, "scores": {"man": {"values": [1]}}}]})",
       R"({"layers": [{"layer": 0, "scores": {"man": {"values": null}}}]})",
       R"({"layers": [{"layer": 0, "scores": {"man": null}}]})",
       R"({"layers": [{"layer": 0, "scores": {}}]})",
       R"({"layers": [{"layer": 0, "scores": {"man": {"values": ["x"]}}}]})",
       R"({"layers": [{"layer": 0, "scores": {"man": {"values": [1]}}}, {"layer": 0, "scores": {"man": {"values": [1]}}}]})",
       R"({"layers": [)", ""})
    EXPECT_THROW(read_scores(write(text), "man"), FormatError) << text;
  EXPECT_THROW(read_scores(folder_ / "none", "man"), FormatError);
}

TEST(FileScore, NamesAreThoseOfTheReportsAndTheirExponents) {
  for (const char* name : {"frequency", "seer", "ean", "reap", "man", "msan", "gate_norm", "gate_norm_sq",
                           "hope_diagonal", "s_000", "s_011", "s_022", "s_122", "s_101", "rsd", "taylor"})
    EXPECT_NO_THROW(check_file_score(name)) << name;
  for (const char* name : {"", "aimer", "s_", "s_003", "s_211", "MAN"})
    EXPECT_THROW(check_file_score(name), UsageError) << name;
}

}  // namespace
}  // namespace exfusion
