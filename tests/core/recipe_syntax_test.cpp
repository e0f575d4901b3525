// Texts that are no recipe, and hostile ones: each is refused with a place, none crashes or hangs.
#include <gtest/gtest.h>

#include <random>

#include "recipe_messages.h"

namespace exfusion {
namespace {

std::string refusal(const std::string& text) {
  return problems(text, kReadNothing);
}

TEST(RecipeSyntax, RefusesWhatIsNoMap) {
  EXPECT_EQ(refusal(""), "r.yaml:1:1: the recipe is empty");
  EXPECT_EQ(refusal("# only a remark\n"), "r.yaml:1:1: the recipe is empty");
  EXPECT_EQ(refusal("---\n"), "r.yaml:1:1: the recipe is empty");
  EXPECT_EQ(refusal("- a\n- b\n"), "r.yaml:1:1: a recipe is 'key: value' lines, got a list");
  EXPECT_EQ(refusal("steps:3\n"), "r.yaml:1:1: a recipe is 'key: value' lines, got 'steps:3'");
}

TEST(RecipeSyntax, RefusesMoreThanOneDocument) {
  EXPECT_EQ(refusal("a: 1\n---\nb: 2\n"),
            "r.yaml:2:1: a second document starts here; a recipe is one document");
}

TEST(RecipeSyntax, RefusesDuplicateKeysAlsoNestedOnes) {
  const Reader read = [](Section root) {
    root.get<std::int64_t>("a", 0);
    root.child("s").child("t").get<std::int64_t>("x", 0);
  };
  EXPECT_EQ(problems("a: 1\ns:\n  t: {x: 1, x: 2}\na: 2\n", read),
            "r.yaml:3:13: key 's.t.x' appears twice (first at r.yaml:3:7)\n"
            "r.yaml:4:1: key 'a' appears twice (first at r.yaml:1:1)");
}

TEST(RecipeSyntax, RefusesAnchorsAliasesAndTags) {
  const Reader read = [](Section root) {
    root.get<std::int64_t>("a", 0);
    root.get<std::int64_t>("b", 0);
  };
  const std::string no = "anchors (&) and aliases (*) are not allowed in a recipe (use include)";
  EXPECT_EQ(problems("a: &x 1\nb: *x\n", read), "r.yaml:1:4: " + no + "\nr.yaml:2:4: " + no);
  EXPECT_EQ(problems("a: *x\n", read), "r.yaml:1:4: " + no);
  EXPECT_EQ(problems("a: !!int 3\n", read),
            "r.yaml:1:4: tags such as 'tag:yaml.org,2002:int' are not allowed in a recipe");
}

TEST(RecipeSyntax, RefusesKeysThatAreNoWords) {
  EXPECT_EQ(refusal("[1, 2]: 3\n"),
            "r.yaml:1:1: a key must be a word, got a list or a map (is a bracket open?)");
  EXPECT_EQ(refusal("? {a: b}\n: 3\n"),
            "r.yaml:1:3: a key must be a word, got a list or a map (is a bracket open?)");
  EXPECT_EQ(refusal("~: 3\n"), "r.yaml:1:1: a key must be a word, got nothing");
  EXPECT_EQ(refusal("'': 3\n"), "r.yaml:1:1: a key must be a word, got an empty one");
  EXPECT_EQ(refusal(std::string(129, 'k') + ": 3\n"), "r.yaml:1:1: a key is longer than 128 bytes");
  EXPECT_EQ(
      problems("train.steps: 3\n", [](Section root) { root.child("train").get<std::int64_t>("steps", 0); }),
      "r.yaml:1:1: unknown key 'train.steps' (a dot does not nest: write a section and its keys)");
}

TEST(RecipeSyntax, RewordsTheParsersErrors) {
  EXPECT_EQ(refusal("a: [1, 2\n"), "r.yaml:2:1: a '[' is not closed with ']'");
  EXPECT_EQ(refusal("a: {b: 1\n"), "r.yaml:2:1: a '{' is not closed with '}'");
  EXPECT_EQ(refusal("a: \"text\n"), "r.yaml:2:1: a quote is not closed");
  EXPECT_EQ(refusal("a: 'text\nb: 2"), "r.yaml:3:1: a quote is not closed");
  EXPECT_EQ(refusal("a: [1]]\n"), "r.yaml:1:7: a ']' or '}' that nothing opened");
  EXPECT_EQ(refusal("a: b: c\n"),
            "r.yaml:1:5: a ':' where no value can stand (is the indentation right? is a quote missing?)");
  EXPECT_EQ(refusal("train:\n  a: 1\n b: 2\n"),
            "r.yaml:3:2: this line does not fit in here (is the indentation right? is a ':' missing?)");
  EXPECT_EQ(refusal("train:\n\tsteps: 3\n"), "r.yaml:2:1: a tab in the indentation: use spaces");
}

TEST(RecipeSyntax, RefusesBytesThatAreNoText) {
  using namespace std::string_literals;
  EXPECT_EQ(refusal("a: 1\nb: \0\n"s), "r.yaml:2:4: not a text file in UTF-8 (byte 0x00)");
  EXPECT_EQ(refusal("\x89HDF\r\n"), "r.yaml:1:1: not a text file in UTF-8 (byte 0x89)");
  EXPECT_EQ(refusal("\xFF\xFE"s), "r.yaml:1:1: not a text file in UTF-8 (byte 0xff)");
  EXPECT_EQ(refusal("a: \xC0\xAF"), "r.yaml:1:4: not a text file in UTF-8 (byte 0xc0)");      // overlong
  EXPECT_EQ(refusal("a: \xED\xA0\x80"), "r.yaml:1:4: not a text file in UTF-8 (byte 0xed)");  // surrogate
  EXPECT_EQ(refusal("a: \xE2\x82"), "r.yaml:1:4: not a text file in UTF-8 (byte 0xe2)");      // cut off
  EXPECT_EQ(problems("a: \"x\\0y\"\n", [](Section root) { root.get<std::string>("a", ""); }),
            "r.yaml:1:4: 'x\\x00y' has a control character");
}

TEST(RecipeSyntax, TakesWindowsLineEndsAndAByteOrderMark) {
  Recipe recipe = Recipe::parse(
      "\xEF\xBB\xBF"
      "a: 1\r\nb: größer\r\n",
      "r.yaml");
  EXPECT_EQ(recipe.root().get<std::int64_t>("a", 0), 1);
  EXPECT_EQ(recipe.root().get<std::string>("b", ""), "größer");
}

std::string repeated(const std::string& text, int times, std::string result = "") {
  for (int i = 0; i < times; ++i) result += text;
  return result;
}

TEST(RecipeSyntax, RefusesDeepNesting) {
  EXPECT_EQ(refusal(repeated("]", 31, repeated("[", 31, "a: "))),
            "r.yaml:1:1: unknown key 'a' (the recipe has no keys)");
  EXPECT_EQ(refusal(repeated("]", 32, repeated("[", 32, "a: "))),
            "r.yaml:1:35: nested deeper than 32 levels");
  for (const std::string open : {"[", "{", "- ", "? ", "a: {", "[a: "})
    EXPECT_NE(refusal(repeated(open, 200000)), "") << open;
}

TEST(RecipeSyntax, SurvivesHostileTexts) {
  // A megabyte of keys, of lists, of unknown words next to known ones: linear work, a bounded message.
  std::string keys;
  for (int i = 0; i < 100000; ++i) keys.append("k").append(std::to_string(i)).append(": 1\n");
  const std::string items = repeated("[],", 300000, "a: [") + "]";
  EXPECT_LT(refusal(keys).size(), 20000u);
  EXPECT_LT(refusal(items).size(), 20000u);
  EXPECT_LT(refusal(repeated("x", 1000000, "a: ")).size(), 20000u);
}

TEST(RecipeSyntax, SurvivesRandomDamage) {
  const std::string good =
      "include: []\nname: vit # x\nmodel: {dim: 384, ffn: {name: topk}}\noptim:\n  betas: [0.9, 0.999]\n  "
      "text: |\n    a\n    b\n"
      "  'q': \"x\\n\"\n? k\n: v\n";
  const std::string marks = "[]{}:,-?&*!|>'\"%@`#\n\t \\0~a";
  std::minstd_rand random(1);
  int refused = 0;
  for (int trial = 0; trial < 20000; ++trial) {
    std::string text = good;
    for (int change = 0; change < 3; ++change) {
      const std::size_t at = random() % text.size();
      switch (random() % 3) {
        case 0:
          text.erase(at, 1 + random() % 4);
          break;
        case 1:
          text.insert(at, 1, marks[random() % marks.size()]);
          break;
        default:
          text[at] = static_cast<char>(random() % 256);
      }
    }
    refused += !refusal(text).empty();  // nothing but RecipeError may come out
  }
  EXPECT_GT(refused, 10000);
}

}  // namespace
}  // namespace exfusion
