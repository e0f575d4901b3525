// Recipes made of several files and of `--set`: merging, origins, cycles.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "recipe_messages.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;

class RecipeFiles : public testing::Test {
 protected:
  RecipeFiles()
      : folder_(fs::temp_directory_path() / ("exfusion_recipe_" + std::to_string(getpid()) + "_" +
                                             testing::UnitTest::GetInstance()->current_test_info()->name())) {
    fs::create_directories(folder_);
  }
  ~RecipeFiles() override { fs::remove_all(folder_); }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  std::string write(const std::string& name, const std::string& text) const {
    fs::create_directories(fs::path(path(name)).parent_path());
    std::ofstream(path(name), std::ios::binary) << text;
    return path(name);
  }

  // As `problems`, of a file; the folder's name is left out of the messages.
  std::string file_problems(const std::string& name, const Reader& read,
                            const std::vector<std::string>& sets = {}) const {
    std::string message;
    try {
      Recipe recipe = Recipe::load(path(name), sets);
      read(recipe.root());
      recipe.finish();
    } catch (const RecipeError& error) {
      message = error.what();
    }
    const std::string prefix = folder_.string() + "/";
    for (std::size_t at; (at = message.find(prefix)) != std::string::npos;) message.erase(at, prefix.size());
    return message;
  }

  fs::path folder_;
};

TEST_F(RecipeFiles, MergeMapsDeeplyAndReplaceScalarsAndLists) {
  write("base/model.yaml", "model: {dim: 8, depth: 2, ffn: {name: dense, width: 4}}\nbetas: [1, 2, 3]\n");
  write("base/train.yaml", "include: model.yaml\ntrain: {steps: 5, clip: 1}\nmodel: {depth: 3}\n");
  const std::string file = write(
      "main.yaml", "include: [base/train.yaml]\nmodel: {ffn: {width: 6}}\nbetas: [9]\ntrain:\n  steps: 7\n");
  Recipe recipe = Recipe::load(file, {"train.clip=2", "model.ffn={name: topk}"});
  Section root = recipe.root();
  EXPECT_EQ(root.child("model").get<std::int64_t>("dim", 0), 8);
  EXPECT_EQ(root.child("model").get<std::int64_t>("depth", 0), 3);
  EXPECT_EQ(root.child("model").child("ffn").get<std::string>("name", ""), "topk");
  EXPECT_EQ(root.child("model").child("ffn").get<std::int64_t>("width", 0), 6);
  EXPECT_EQ(root.get<std::vector<std::int64_t>>("betas", {}), std::vector<std::int64_t>{9});
  EXPECT_EQ(root.child("train").get<std::int64_t>("steps", 0), 7);
  EXPECT_EQ(root.child("train").get<double>("clip", 0), 2.0);
  EXPECT_NO_THROW(recipe.finish());
}

TEST_F(RecipeFiles, LaterIncludesWinOverEarlierOnes) {
  write("a.yaml", "x: 1\ny: 1\n");
  write("b.yaml", "x: 2\n");
  Recipe recipe = Recipe::load(write("main.yaml", "include: [a.yaml, b.yaml]\n"), {});
  EXPECT_EQ(recipe.root().get<std::int64_t>("x", 0), 2);
  EXPECT_EQ(recipe.root().get<std::int64_t>("y", 0), 1);
}

TEST_F(RecipeFiles, EveryProblemNamesTheFileItComesFrom) {
  write("base.yaml", "train:\n  clip: x\n  stpes: 1\n");
  write("main.yaml", "include: base.yaml\ntrain:\n  steps: 1e3\n");
  const Reader read = [](Section root) {
    root.child("train").get<double>("clip", 0);
    root.child("train").get<std::int64_t>("steps", 0);
    root.child("train").get<double>("lr", 0);
  };
  EXPECT_EQ(file_problems("main.yaml", read, {"train.lr=fast"}),
            "main.yaml:3:10: train.steps must be an integer, got '1e3'\n"
            "base.yaml:2:9: train.clip must be a number, got 'x'\n"
            "base.yaml:3:3: unknown key 'train.stpes' (did you mean 'train.steps'?)\n"
            "--set train.lr=fast: train.lr must be a number, got 'fast'");
}

TEST_F(RecipeFiles, NoneDropsAnIncludedSectionAndALaterMapReplacesNone) {
  write("base.yaml", "fusion: {experts: 4, noise: 1}\n");
  write("dense.yaml", "include: base.yaml\nfusion: none\n");
  write("again.yaml", "include: dense.yaml\nfusion: {experts: 2}\n");
  const auto experts = [&](const std::string& name, const std::vector<std::string>& sets) -> std::int64_t {
    Recipe recipe = Recipe::load(path(name), sets);
    auto fusion = recipe.root().optional_child("fusion");
    const std::int64_t result = fusion ? fusion->get<std::int64_t>("experts", -1) : 0;
    if (fusion) fusion->get<double>("noise", 0);
    recipe.finish();
    return result;
  };
  EXPECT_EQ(experts("base.yaml", {}), 4);
  EXPECT_EQ(experts("dense.yaml", {}), 0);
  EXPECT_EQ(experts("again.yaml", {}), 2);
  EXPECT_EQ(experts("base.yaml", {"fusion=none"}), 0);
  EXPECT_EQ(experts("dense.yaml", {"fusion.experts=8"}), 8);
  EXPECT_EQ(experts("base.yaml", {"fusion=none", "fusion={experts: 2}"}), 2);
  EXPECT_EQ(experts("base.yaml", {"fusion.experts=8", "fusion=none"}), 0);
}

// Or a baseline would quietly be fused after all.
TEST_F(RecipeFiles, AKeyOfASectionThatASetHasDroppedIsAProblem) {
  write("base.yaml", "fusion: {experts: 4}\n");
  EXPECT_EQ(
      file_problems("base.yaml", [](Section root) { root.optional_child("fusion"); },
                    {"fusion=none", "fusion.experts=2"}),
      "--set fusion.experts=2: 'fusion.experts' cannot be set: --set fusion=none took its section away");
}

TEST_F(RecipeFiles, AnEmptySectionDoesNotDropWhatWasIncluded) {
  write("base.yaml", "train: {steps: 3}\n");
  write("main.yaml", "include: base.yaml\ntrain:\n#  steps: 4\n");
  EXPECT_EQ(
      file_problems("main.yaml", [](Section root) { root.child("train").require<std::int64_t>("steps"); }),
      "main.yaml:2:1: 'train' is empty here, which would drop what was given before: remove it, or write "
      "none");
}

TEST_F(RecipeFiles, RefuseIncludesThatCannotBeRead) {
  write("main.yaml", "x: 1\ninclude: nowhere/x.yaml\n");
  EXPECT_EQ(file_problems("main.yaml", kReadNothing),
            "main.yaml:2:10: cannot include 'nowhere/x.yaml': no such file");
  write("main.yaml", "include: [., a.yaml]\n");
  EXPECT_EQ(file_problems("main.yaml", kReadNothing), "main.yaml:1:11: cannot include '': is a folder");
  write("main.yaml", "include: {a: b}\n");
  EXPECT_EQ(file_problems("main.yaml", kReadNothing),
            "main.yaml:1:10: include must be a file or a list of files, got a section");
  write("main.yaml", "include: /dev/zero\n");
  EXPECT_EQ(file_problems("main.yaml", kReadNothing),
            "main.yaml:1:10: cannot include '/dev/zero': is not a regular file");
  EXPECT_EQ(file_problems("absent.yaml", kReadNothing), "absent.yaml: no such file");
}

TEST_F(RecipeFiles, RefuseCyclesAndNameTheChain) {
  write("a.yaml", "include: sub/b.yaml\n");
  write("sub/b.yaml", "x: 1\ninclude:\n  - ../c.yaml\n");
  write("c.yaml", "include: ./sub/../a.yaml\n");
  EXPECT_EQ(file_problems("a.yaml", kReadNothing),
            "c.yaml:1:10: include cycle: a.yaml -> sub/b.yaml -> c.yaml -> a.yaml");
}

TEST_F(RecipeFiles, TheSameFileMayBeIncludedTwice) {
  write("base.yaml", "x: 1\n");
  write("a.yaml", "include: base.yaml\n");
  write("b.yaml", "include: base.yaml\n");
  write("main.yaml", "include: [a.yaml, b.yaml]\n");
  EXPECT_EQ(file_problems("main.yaml", [](Section root) { root.get<std::int64_t>("x", 0); }), "");
}

TEST_F(RecipeFiles, RefuseIncludesThatMultiply) {
  write("leaf.yaml", "x: 1\n");
  for (int i = 0; i < 20; ++i) {
    const std::string below = i == 0 ? "leaf.yaml" : std::to_string(i - 1) + ".yaml";
    write(std::to_string(i) + ".yaml", "include: [" + below + ", " + below + "]\n");
  }
  EXPECT_TRUE(file_problems("19.yaml", kReadNothing).ends_with(": more than 64 files in one recipe"));
}

TEST_F(RecipeFiles, RefuseFilesThatAreTooLarge) {
  write("main.yaml", "x: 1\n" + std::string((1 << 20) - 5, '#'));
  EXPECT_EQ(file_problems("main.yaml", [](Section root) { root.get<std::int64_t>("x", 0); }), "");
  write("main.yaml", "x: 1\n" + std::string((1 << 20) - 4, '#'));
  EXPECT_EQ(file_problems("main.yaml", kReadNothing), "main.yaml: is larger than 1 MiB");
}

TEST(RecipeSet, TakesTheValueAsYaml) {
  Recipe recipe = Recipe::parse(
      "{}", "r.yaml",
      {"a.b=[1, 2]", "a.c=true", "name=\"5\"", "text=a=b", "seed=3", "seed=4", "m={x: 1, n: {y: 2}}"});
  Section root = recipe.root();
  EXPECT_EQ(root.child("a").get<std::vector<std::int64_t>>("b", {}), (std::vector<std::int64_t>{1, 2}));
  EXPECT_TRUE(root.child("a").get<bool>("c", false));
  EXPECT_EQ(root.get<std::string>("name", ""), "5");
  EXPECT_EQ(root.get<std::string>("text", ""), "a=b");
  EXPECT_EQ(root.get<std::int64_t>("seed", 0), 4);
  EXPECT_EQ(root.child("m").child("n").get<std::int64_t>("y", 0), 2);
  EXPECT_EQ(recipe.set_keys(),
            (std::vector<std::string>{"a.b", "a.c", "name", "text", "seed", "seed", "m.n.y", "m.x"}));
}

TEST(RecipeSet, RefusesWhatIsNoSetting) {
  const Reader read = [](Section root) {
    root.child("train").get<std::int64_t>("steps", 0);
    root.get<std::vector<std::int64_t>>("sizes", {});
  };
  const auto set = [&](const std::string& text) {
    return problems("train:\n  steps: 1\nsizes: [1]\n", read, {text});
  };
  EXPECT_EQ(set("train.steps"), "--set train.steps: must be key=value");
  EXPECT_EQ(set("=3"), "--set =3: a name in the key is empty");
  EXPECT_EQ(set("train..steps=3"), "--set train..steps=3: a name in the key is empty");
  EXPECT_EQ(set("train.=3"), "--set train.=3: a name in the key is empty");
  EXPECT_EQ(set(".train=3"), "--set .train=3: a name in the key is empty");
  EXPECT_EQ(
      set("train.steps.x=3"),
      "--set train.steps.x=3: 'train.steps.x' cannot be set: the key above it is a value (r.yaml:2:10)");
  EXPECT_EQ(set("sizes.0=3"),
            "--set sizes.0=3: 'sizes.0' cannot be set: the key above it is a value (r.yaml:3:8)");
  EXPECT_EQ(set("include=x.yaml"), "--set include=x.yaml: include can stand only in a file");
  EXPECT_EQ(set("train.steps=[1, 2"),
            "--set train.steps=[1, 2: a key must be a word, got a list or a map (is a bracket open?)");
  EXPECT_EQ(set("train.steps=1e3"), "--set train.steps=1e3: train.steps must be an integer, got '1e3'");
  EXPECT_EQ(set("train.steps="), "--set train.steps=: train.steps must be an integer, got nothing");
  EXPECT_EQ(set("train.stpes=1"),
            "--set train.stpes=1: unknown key 'train.stpes' (did you mean 'train.steps'?)");
  EXPECT_EQ(set("steps=1"), "--set steps=1: unknown key 'steps' (did you mean 'train.steps'?)");
  EXPECT_EQ(set("a\n=1"), "--set a\\n=1: unknown key 'a\\n' (the keys of the recipe are train, sizes)");
  EXPECT_EQ(set("train={steps: 1, steps: 2}"),
            "--set train={steps: 1, steps: 2}: key 'train.steps' appears twice (first at --set train={steps: "
            "1, steps: 2})");
}

}  // namespace
}  // namespace exfusion
