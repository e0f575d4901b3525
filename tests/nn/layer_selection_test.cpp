#include "nn/layer_selection.h"

#include <gtest/gtest.h>

namespace exfusion {
namespace {

using Words = std::vector<std::string>;

TEST(LayerSelection, IsByWordOrNumber) {
  EXPECT_EQ(select_layers({"all"}, 3), (std::vector<bool>{true, true, true}));
  EXPECT_EQ(select_layers({"last:2"}, 3), (std::vector<bool>{false, true, true}));
  EXPECT_EQ(select_layers({"every:2"}, 5), (std::vector<bool>{false, true, false, true, false}));
  EXPECT_EQ(select_layers({"every:1"}, 2), (std::vector<bool>{true, true}));
  EXPECT_EQ(select_layers({"2", "0"}, 3), (std::vector<bool>{true, false, true}));
  for (const Words& words : {Words{"all"}, {"last:3"}, {"every:3"}, {"2", "0"}})
    EXPECT_EQ(layer_selection_problem(words, 3), "");
}

TEST(LayerSelection, OutsideOfTheModelIsNamed) {
  for (const Words& words : {Words{"3"}, {"last:4"}, {"every:4"}, {"0", "7"}}) {
    const std::string problem = layer_selection_problem(words, 3);
    EXPECT_NE(problem.find(words.back()), std::string::npos) << problem;
    EXPECT_NE(problem.find("3 blocks"), std::string::npos) << problem;
  }
}

TEST(LayerSelection, OfAnotherFormIsRefusedWithTheForms) {
  for (const Words& words : {Words{"some"},
                             {"last:0"},
                             {"every:0"},
                             {"1", "1"},
                             {"-1"},
                             {"all", "1"},
                             {},
                             {"last:99999999999999999999"},
                             {"01"},
                             {"last:1", "every:2"}}) {
    EXPECT_NE(layer_selection_problem(words, 100).find("every:k"), std::string::npos);
  }
}

}  // namespace
}  // namespace exfusion
