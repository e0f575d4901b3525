#include "compare/picture.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <regex>

namespace exfusion {
namespace {

ArmRuns drawn_arm(const std::string& name, const std::vector<double>& accuracies) {
  ArmRuns runs{*std::ranges::find(all_arms(), name, &Arm::name)};
  for (const double accuracy : accuracies) {
    RunResult result;
    result.accuracy = accuracy;
    runs.runs.push_back(result);
  }
  return runs;
}

std::vector<std::vector<std::string>> matches(const std::string& text, const std::string& pattern) {
  const std::regex expression(pattern);
  std::vector<std::vector<std::string>> found;
  for (std::sregex_iterator match(text.begin(), text.end(), expression), end; match != end; ++match)
    found.emplace_back(match->begin(), match->end());
  return found;
}

TEST(Picture, HasADotForEverySeedAndEveryMeanDifference) {
  const std::string svg = comparison_svg(
      summarise({drawn_arm("dense", {0.80, 0.82, 0.81}), drawn_arm("static", {0.81, 0.83, 0.80})}, false),
      "a title");
  EXPECT_EQ(matches(svg, "<circle [^>]*r='3.5'").size(), 6u);
  EXPECT_EQ(matches(svg, "<circle [^>]*r='4.5'").size(), 1u);
  EXPECT_NE(svg.find(">static</text>"), std::string::npos);
}

TEST(Picture, PlacesAreInProportion) {
  const std::string svg = comparison_svg(
      summarise({drawn_arm("dense", {0.80, 0.82, 0.84}), drawn_arm("static", {0.81, 0.83, 0.85})}, false),
      "a title");
  const auto dots = matches(svg, "<circle cx='([0-9.]+)' cy='[0-9.]+' r='3.5'");
  ASSERT_EQ(dots.size(), 6u);
  const auto x = [&](std::size_t i) { return std::stod(dots[i][1]); };
  EXPECT_NEAR(x(1) - x(0), x(2) - x(1), 0.11);  // one decimal
  EXPECT_NEAR(2 * (x(3) - x(0)), x(1) - x(0), 0.21);
}

TEST(Picture, ArmsWithoutRunsAreLeftOut) {
  ArmRuns same{*std::ranges::find(all_arms(), "dense_lr_scaled", &Arm::name)};
  same.identical_to_dense = true;
  ArmRuns torn = drawn_arm("static", {0.8, 0.8});
  torn.runs[0] = std::nullopt;
  const std::string svg =
      comparison_svg(summarise({drawn_arm("dense", {0.80, 0.82}), same, torn}, false), "a title");
  EXPECT_EQ(svg.find("dense_lr_scaled"), std::string::npos);
  EXPECT_EQ(svg.find(">static<"), std::string::npos);
}

TEST(Picture, HoldsTogetherWhenNothingVaries) {
  const std::string svg = comparison_svg(
      summarise({drawn_arm("dense", {0.5, 0.5}), drawn_arm("static", {0.5, 0.5})}, false), "a title");
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(svg.find("inf"), std::string::npos);
  EXPECT_EQ(comparison_svg({}, "nothing").find("nan"), std::string::npos);
}

TEST(Picture, TextFromOutsideIsEscaped) {
  EXPECT_EQ(xml_escaped("a<b>&'\"\x01"), "a&lt;b&gt;&amp;&apos;&quot; ");
  const std::string svg = comparison_svg({}, "<script>x</script>");
  EXPECT_EQ(svg.find("<script>"), std::string::npos);
}

}  // namespace
}  // namespace exfusion
