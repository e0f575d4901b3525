// Reading values through sections: types, ranges, words, unknown keys, and the resolved recipe.
#include "core/recipe.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "recipe_messages.h"

namespace exfusion {
namespace {

void read_train(Section root) {
  Section train = root.child("train");
  train.get<std::int64_t>("steps", 10);
  train.in_range<double>("clip", 1.0, 0.0, 10.0);
  train.get<bool>("ema", false);
}

TEST(RecipeRead, TakesValuesAndFallbacks) {
  Recipe recipe = Recipe::parse(
      "a: -7\nb: +12\nc: 1e-3\nd: .5\ne: 1\nf: true\ng: some text\nh: [1, 2]\ni: [0.9, 1]\nj: \"5\"\nk: "
      "-.5E+2\nl: 2.\n",
      "r.yaml");
  Section root = recipe.root();
  EXPECT_EQ(root.get<std::int64_t>("a", 0), -7);
  EXPECT_EQ(root.get<std::int64_t>("b", 0), 12);
  EXPECT_EQ(root.get<double>("c", 0), 1e-3);
  EXPECT_EQ(root.get<double>("d", 0), 0.5);
  EXPECT_EQ(root.get<double>("e", 0), 1.0);
  EXPECT_TRUE(root.get<bool>("f", false));
  EXPECT_EQ(root.get<std::string>("g", ""), "some text");
  EXPECT_EQ(root.get<std::vector<std::int64_t>>("h", {}), (std::vector<std::int64_t>{1, 2}));
  EXPECT_EQ(root.get<std::vector<double>>("i", {}), (std::vector<double>{0.9, 1.0}));
  EXPECT_EQ(root.get<std::string>("j", ""), "5");
  EXPECT_EQ(root.get<double>("k", 0), -50.0);
  EXPECT_EQ(root.get<double>("l", 0), 2.0);
  EXPECT_EQ(root.get<std::int64_t>("missing", 42), 42);
  EXPECT_EQ(root.child("nowhere").path(), "nowhere");
  EXPECT_EQ(root.child("nowhere").child("deeper").get<std::string>("x", "y"), "y");
  EXPECT_NO_THROW(recipe.finish());
}

TEST(RecipeRead, TakesIntegersUpToTheirLimits) {
  Recipe recipe = Recipe::parse("low: -9223372036854775808\nhigh: 9223372036854775807\n", "r.yaml");
  EXPECT_EQ(recipe.root().get<std::int64_t>("low", 0), INT64_MIN);
  EXPECT_EQ(recipe.root().get<std::int64_t>("high", 0), INT64_MAX);
}

TEST(RecipeRefuses, WhatIsNoInteger) {
  const auto steps = [](const std::string& value) {
    return problems("train:\n  steps: " + value + "\n", read_train);
  };
  const std::string must = "r.yaml:2:10: train.steps must be an integer, got ";
  EXPECT_EQ(steps("1e3"), must + "'1e3'");
  EXPECT_EQ(steps("1.0"), must + "'1.0'");
  EXPECT_EQ(steps("1_000"), must + "'1_000'");
  EXPECT_EQ(steps("0x10"), must + "'0x10'");
  EXPECT_EQ(steps("+-3"), must + "'+-3'");
  EXPECT_EQ(steps("010"), must + "'010' (no leading zeros)");
  EXPECT_EQ(steps("9223372036854775808"), must + "'9223372036854775808' (beyond what 64 bits hold)");
  EXPECT_EQ(steps("\"5\""), must + "the string \"5\"");
  EXPECT_EQ(steps("[1]"), must + "a list");
  EXPECT_EQ(steps("{a: 1}"), must + "a section");
  EXPECT_EQ(steps("true"), must + "'true'");
  EXPECT_EQ(steps(""), "r.yaml:2:3: train.steps must be an integer, got nothing");
  EXPECT_EQ(steps("~"), "r.yaml:2:3: train.steps must be an integer, got nothing");
}

TEST(RecipeRefuses, WhatIsNoNumber) {
  const auto clip = [](const std::string& value) {
    return problems("train: {clip: " + value + "}", read_train);
  };
  const std::string must = "r.yaml:1:15: train.clip must be a number, got ";
  for (const std::string value :
       {"nan", ".nan", "inf", "-inf", ".inf", "1e", "1.5x", "0x1p3", "--1", "+-1", ".", "1 2"})
    EXPECT_EQ(clip(value), must + "'" + value + "'");
  EXPECT_EQ(clip("1e999"), must + "'1e999' (beyond what 64 bits hold)");
  EXPECT_EQ(clip("01.5"), must + "'01.5' (no leading zeros)");
}

TEST(RecipeRefuses, WhatIsNoBoolean) {
  for (const std::string value : {"yes", "no", "on", "True", "1", "'true'"})
    EXPECT_EQ(problems("train: {ema: " + value + "}", read_train),
              "r.yaml:1:14: train.ema must be true or false, got " +
                  (value == "'true'" ? std::string("the string \"true\"") : "'" + value + "'"));
}

TEST(RecipeRefuses, WhatIsNoStringOrList) {
  const Reader read = [](Section root) {
    root.get<std::string>("name", "");
    root.get<std::vector<std::int64_t>>("sizes", {});
    root.get<std::vector<double>>("betas", {});
    root.words("layers", {"all"});
  };
  EXPECT_EQ(problems("name: [a]", read), "r.yaml:1:7: name must be a string, got a list");
  EXPECT_EQ(problems("sizes: 5", read), "r.yaml:1:8: sizes must be a list of integers, got '5'");
  EXPECT_EQ(problems("sizes: [1, 2.5]", read), "r.yaml:1:12: sizes[1] must be an integer, got '2.5'");
  EXPECT_EQ(problems("betas: [0.9, [1]]", read), "r.yaml:1:14: betas[1] must be a number, got a list");
  EXPECT_EQ(problems("layers: {a: b}", read),
            "r.yaml:1:9: layers must be a word or a list of words, got a section");
  EXPECT_EQ(problems("layers: [1, [2]]", read),
            "r.yaml:1:9: layers must be a word or a list of words, got a list of other things");
}

TEST(RecipeRefuses, ValuesOutOfRange) {
  const Reader read = [](Section root) {
    root.in_range<double>("lr", 1e-3, 0.0, 10.0);
    root.in_range<std::int64_t>("steps", 1, 1, std::numeric_limits<std::int64_t>::max());
    root.in_range<double>("offset", 0.0, std::numeric_limits<double>::lowest(), 0.5);
    root.optional_in_range<double>("clip", 0.0, 1.0);
  };
  EXPECT_EQ(problems("lr: 50", read), "r.yaml:1:5: lr must be in [0, 10], got 50");
  EXPECT_EQ(problems("steps: 0", read), "r.yaml:1:8: steps must be >= 1, got 0");
  EXPECT_EQ(problems("offset: 0.75", read), "r.yaml:1:9: offset must be <= 0.5, got 0.75");
  EXPECT_EQ(problems("clip: -1e-3", read), "r.yaml:1:7: clip must be in [0, 1], got -1e-3");
  EXPECT_EQ(problems("{lr: 10, steps: 1, offset: 0.5, clip: 1}", read), "");
}

TEST(RecipeRefuses, WordsThatAreNotAllowed) {
  const Reader read = [](Section root) {
    EXPECT_EQ(root.child("model").one_of("name", "vit", {"vit", "vmoe"}), "vit");
  };
  EXPECT_EQ(problems("model: {name: vtt}", read),
            "r.yaml:1:15: model.name must be one of {vit, vmoe}, got 'vtt' (did you mean 'vit'?)");
  EXPECT_EQ(problems("model: {name: resnet}", read),
            "r.yaml:1:15: model.name must be one of {vit, vmoe}, got 'resnet'");
  EXPECT_EQ(problems("model: {name: }", read),
            "r.yaml:1:9: model.name must be one of {vit, vmoe}, got nothing");
  EXPECT_EQ(problems("model: {name: vit}", read), "");
}

TEST(RecipeRefuses, MissingRequiredKeysAtThePlaceOfTheSection) {
  const Reader read = [](Section root) {
    Section model = root.child("model");
    EXPECT_EQ(model.require_in_range<std::int64_t>("dim", 8, 4096), 8);
    EXPECT_EQ(model.require_one_of("arch", {"vit", "gpt2"}), "vit");
    model.require<std::string>("pool");
  };
  EXPECT_EQ(problems("seed: 0\nmodel:\n  dim: 8\n  arch: vit",
                     [&](Section root) {
                       root.get<std::int64_t>("seed", 0);
                       read(root);
                     }),
            "r.yaml:3:3: model.pool is missing, and it has no default");
  EXPECT_EQ(problems("{}", read),
            "r.yaml:1:1: model.dim is missing, and it has no default\n"
            "r.yaml:1:1: model.arch is missing, and it has no default\n"
            "r.yaml:1:1: model.pool is missing, and it has no default");
  EXPECT_EQ(problems("model: small", read),
            "r.yaml:1:8: model must be a section (key: value lines), got 'small'");
}

TEST(RecipeRefuses, UnknownKeysWithTheNearestKnownOne) {
  EXPECT_EQ(problems("train:\n  stpes: 3\n", read_train),
            "r.yaml:2:3: unknown key 'train.stpes' (did you mean 'train.steps'?)");
  EXPECT_EQ(problems("train:\n  momentum: 3\n", read_train),
            "r.yaml:2:3: unknown key 'train.momentum' (the keys of 'train' are steps, clip, ema)");
  EXPECT_EQ(problems("clip: 3", read_train), "r.yaml:1:1: unknown key 'clip' (did you mean 'train.clip'?)");
  EXPECT_EQ(problems("nothing: 3", read_train),
            "r.yaml:1:1: unknown key 'nothing' (the keys of the recipe are train)");
  EXPECT_EQ(problems("train: {steps:3}", read_train),
            "r.yaml:1:9: unknown key 'train.steps:3' (a ':' must be followed by a space)");
  EXPECT_EQ(problems("data: {x: 1}", [](Section root) { root.child("data"); }),
            "r.yaml:1:8: unknown key 'data.x' ('data' has no keys)");
  EXPECT_EQ(problems("trian: {x: 1, y: 2}", read_train),
            "r.yaml:1:1: unknown key 'trian' (did you mean 'train'?)");
}

TEST(RecipeRefuses, ReportsEveryProblemInTheOrderOfThePlaces) {
  EXPECT_EQ(problems("zebra: 1\ntrain:\n  ema: 1\n  clip: 11\n  steps: x\n  steps: y\n", read_train,
                     {"train.lr=3", "nokey"}),
            "r.yaml:1:1: unknown key 'zebra' (the keys of the recipe are train)\n"
            "r.yaml:3:8: train.ema must be true or false, got '1'\n"
            "r.yaml:4:9: train.clip must be in [0, 10], got 11\n"
            "r.yaml:6:3: key 'train.steps' appears twice (first at r.yaml:5:3)\n"
            "--set train.lr=3: unknown key 'train.lr' (the keys of 'train' are steps, clip, ema)\n"
            "--set nokey: must be key=value");
}

TEST(RecipeRefuses, ReportsAKeyOnceHoweverOftenItIsRead) {
  EXPECT_EQ(problems("a: x",
                     [](Section root) {
                       root.get<std::int64_t>("a", 0);
                       root.in_range<double>("a", 0, 0, 1);
                       root.problem("a", "a must be something else");
                     }),
            "r.yaml:1:4: a must be an integer, got 'x'");
}

TEST(RecipeRefuses, PutsProblemsAcrossKeysAtTheKeyOrItsSection) {
  const Reader read = [](Section root) {
    Section train = root.child("train");
    train.get<std::int64_t>("steps", 0);
    train.problem("steps", "train.steps must be even");
    train.problem("epochs", "train.epochs or\ntrain.steps is needed");
  };
  EXPECT_EQ(problems("train:\n  steps: 3", read),
            "r.yaml:2:3: train.epochs or\\ntrain.steps is needed\nr.yaml:2:10: train.steps must be even");
}

TEST(RecipeRefuses, CutsLongTextsAndLongLists) {
  const std::string got = problems("train: {ema: " + std::string(5000, 'x') + "}", read_train);
  EXPECT_EQ(got, "r.yaml:1:14: train.ema must be true or false, got '" + std::string(80, 'x') + "...'");
  std::string many;
  for (int i = 0; i < 150; ++i) many += "unknown" + std::to_string(i) + ": 1\n";
  EXPECT_TRUE(problems(many, read_train).ends_with("\nand 50 more problems"));
}

TEST(RecipeSection, OptionalChildIsOffWhenMissingOrNone) {
  const auto present = [](const std::string& text) {
    Recipe recipe = Recipe::parse(text, "r.yaml");
    const bool result = recipe.root().optional_child("fusion").has_value();
    recipe.finish();
    return result;
  };
  EXPECT_FALSE(present("{}"));
  EXPECT_FALSE(present("fusion: none"));
  EXPECT_TRUE(present("fusion: {}"));
  const Reader read = [](Section root) { root.optional_child("fusion"); };
  EXPECT_EQ(problems("fusion: off", read),
            "r.yaml:1:9: fusion must be a section (key: value lines) or the word none, got 'off'");
  EXPECT_EQ(problems("fusion:", read),
            "r.yaml:1:1: fusion must be a section (key: value lines) or the word none, got nothing");
}

TEST(RecipeSection, HasIsNoQuestionForTheKey) {
  EXPECT_EQ(problems("a: 1", [](Section root) { EXPECT_TRUE(root.has("a")); }),
            "r.yaml:1:1: unknown key 'a' (the recipe has no keys)");
  EXPECT_EQ(problems("a: null",
                     [](Section root) {
                       EXPECT_FALSE(root.has("a"));
                       EXPECT_EQ(root.optional_string("a"), std::nullopt);
                       EXPECT_EQ((root.optional_in_range<double>("a", 0, 1)), std::nullopt);
                     }),
            "");
}

TEST(RecipeSection, WordsKeepTheirRawForm) {
  Recipe recipe = Recipe::parse("a: all\nb: [last:2, 7]\nc: 3\n", "r.yaml");
  Section root = recipe.root();
  EXPECT_EQ(root.words("a", {}), std::vector<std::string>{"all"});
  EXPECT_EQ(root.words("b", {}), (std::vector<std::string>{"last:2", "7"}));
  EXPECT_EQ(root.words("c", {}), std::vector<std::string>{"3"});
  EXPECT_EQ(root.words("d", {"x", "y"}), (std::vector<std::string>{"x", "y"}));
  EXPECT_EQ(recipe.resolved(), "a: all\nb: [last:2, 7]\nc: 3\nd: [x, y]\n");
}

std::string read_everything(Recipe& recipe) {
  Section root = recipe.root();
  root.get<std::string>("name", "run");
  Section optim = root.child("optim");
  optim.get<double>("lr", 1e-3);
  optim.get<std::vector<double>>("betas", {0.9, 0.999});
  optim.child("schedule").one_of("name", "cosine", {"cosine", "constant"});
  optim.get<double>("eps", 1e-8);
  root.get<std::int64_t>("seed", 0);
  root.get<bool>("flag", true);
  root.optional_string("control");
  root.optional_child("fusion");
  root.words("layers", {"all"});
  for (const char* key : {"s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8"}) root.optional_string(key);
  recipe.finish();
  return recipe.resolved();
}

TEST(RecipeResolved, HoldsEveryValueInTheOrderOfAsking) {
  Recipe recipe = Recipe::parse("{seed: 7, optim: {lr: 0.10}}", "r.yaml");
  EXPECT_EQ(
      read_everything(recipe),
      "name: run\noptim:\n  lr: 0.1\n  betas: [0.9, 0.999]\n  schedule:\n    name: cosine\n  eps: 1e-08\n"
      "seed: 7\nflag: true\nlayers: all\n");
}

TEST(RecipeResolved, ReadsBackAsItself) {
  const std::string text =
      "name: '007'\nseed: -9223372036854775808\nfusion: none\nlayers: [last:2, '~', 3]\ncontrol: 'true'\n"
      "s1: ''\ns2: 'a: b # c'\ns3: \"line\\nbreak \\\"quoted\\\" \\\\ \\t\"\ns4: ' padded '\ns5: '1e5'\ns6: "
      "größe\n"
      "s7: '- x'\ns8: 'null'\noptim: {lr: 0.1, eps: 1.7976931348623157e308, betas: [0.30000000000000004, "
      "5e-324]}\n";
  Recipe first = Recipe::parse(text, "r.yaml");
  const std::string once = read_everything(first);
  EXPECT_NE(once.find("name: \"007\"\n"), std::string::npos);
  EXPECT_NE(once.find("fusion: none\n"), std::string::npos);
  EXPECT_NE(once.find("betas: [0.30000000000000004, 5e-324]\n"), std::string::npos);
  Recipe second = Recipe::parse(once, "resolved.yaml");
  EXPECT_EQ(read_everything(second), once);
  EXPECT_EQ(*second.root().optional_string("s3"), "line\nbreak \"quoted\" \\ \t");
  EXPECT_EQ(*second.root().optional_string("s4"), " padded ");
  EXPECT_EQ(*second.root().optional_string("s6"), "größe");
  EXPECT_EQ(*second.root().optional_string("s8"), "null");
  EXPECT_EQ(second.root().words("layers", {}), (std::vector<std::string>{"last:2", "~", "3"}));
}

TEST(NearestWord, FindsTyposAndNothingElse) {
  const std::vector<std::string> keys = {"steps", "epochs", "weight_decay", "warmup_epochs", "lr"};
  EXPECT_EQ(nearest_word("stpes", keys), "steps");
  EXPECT_EQ(nearest_word("step", keys), "steps");
  EXPECT_EQ(nearest_word("weight-decay", keys), "weight_decay");
  EXPECT_EQ(nearest_word("weightdecay", keys), "weight_decay");
  EXPECT_EQ(nearest_word("Epochs", keys), "epochs");
  EXPECT_EQ(nearest_word("warmup", keys), "warmup_epochs");
  EXPECT_EQ(nearest_word("lx", keys), "lr");
  EXPECT_EQ(nearest_word("xy", keys), "");
  EXPECT_EQ(nearest_word("momentum", keys), "");
  EXPECT_EQ(nearest_word("", keys), "");
  EXPECT_EQ(nearest_word("steps", {}), "");
}

}  // namespace
}  // namespace exfusion
