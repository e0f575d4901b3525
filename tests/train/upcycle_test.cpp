#include "train/upcycle.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "finished_run.h"
#include "models/timm_import.h"
#include "train/checkpoint.h"
#include "train/function_difference.h"
#include "train/start_weights.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;

// A dense run, trained far enough that nothing is at its initial value.
class Upcycle : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    log_set_quiet(true);
    root_ = new TestFolder;
    train_run(TinyRun({"optim.lr=0.02"}), source());
  }
  static void TearDownTestSuite() {
    delete root_;
    root_ = nullptr;
  }
  static fs::path source() { return *root_ / "dense"; }
  static std::vector<std::string> from(const std::string& fusion) {
    return {"seed=9", "fusion={from: " + source().string() + ", " + fusion + "}"};
  }
  static FusionConfig fusion_of(const std::string& init, std::int64_t experts = 4) {
    FusionConfig fusion;
    fusion.init = init;
    fusion.experts = experts;
    return fusion;
  }
  static fs::path written(const FusionConfig& fusion, const std::string& name, std::uint64_t seed = 9) {
    const fs::path folder = *root_ / name;
    write_upcycled(load_model(source(), "last"), fusion, seed, folder, true);
    return folder;
  }
  static TinyRun stored(const fs::path& folder, const std::string& more) {
    return TinyRun({"seed=9", "fusion={from: " + folder.string() + ", " + more + "}"});
  }

  static inline TestFolder* root_ = nullptr;
};

TEST(FunctionDifference, IsThatOfTheOutputs) {
  const at::Tensor before = at::tensor({0.0, 1.0, 2.0, 0.5}).view({2, 2});
  const at::Tensor after = at::tensor({0.0, 1.5, 0.0, 0.5}).view({2, 2});
  const FunctionDifference difference = measure_difference(before, after);
  EXPECT_EQ(difference.largest_logit_difference, 2.0);
  EXPECT_EQ(difference.top1_agreement, 0.5);
  double kl = 0.0;
  for (const auto& [p, q] : {std::pair{1.0, 1.5}, std::pair{-1.5, 0.5}}) {  // differences of the two logits
    const double x = 1 / (1 + std::exp(-p)), y = 1 / (1 + std::exp(-q));
    kl += 0.5 * (x * std::log(x / y) + (1 - x) * std::log((1 - x) / (1 - y)));
  }
  EXPECT_NEAR(difference.mean_kl, kl, 1e-14);
  EXPECT_EQ(measure_difference(before, before).largest_logit_difference, 0.0);
}

// ---- fusion.from and init_from

// N = 3: a sum of thirds rounds, so fusing too early would show.
TEST_F(Upcycle, AStepThatIsSkippedLeavesTheSourcesTensorsAlsoAfterAResume) {
  for (const char* noise : {"", ", expert_dropout: 1.0"}) {
    const auto sets = from(std::string("init: copy, experts: 3, weights: memory") + noise);
    TinyRun run(sets);
    const at::Tensor start = run.state.parameters->values().clone();
    Batch sick = run.batch(0);
    sick.images.fill_(std::numeric_limits<float>::quiet_NaN());
    run.step(sick);
    EXPECT_TRUE(at::equal(run.state.parameters->values(), start));
    const TestFolder folder;
    CheckpointInfo info;
    info.recipe = run.resolved;
    save_checkpoint(folder.path(), run.state, info);
    TinyRun resumed(sets);
    load_checkpoint(folder / "step-00000001", resumed.state);
    EXPECT_TRUE(at::equal(resumed.state.parameters->values(), start));
    run.steps(2);
    resumed.steps(2);
    expect_equal_bits(snapshot(resumed.state), snapshot(run.state));
  }
}

TEST_F(Upcycle, CopyAndSplitStartWithTheSourcesOwnTensors) {
  const LoadedModel dense = load_model(source(), "last");
  for (const char* init : {"init: copy, weights: memory", "init: split", "init: split, experts: 3"}) {
    TinyRun run(from(init));
    for (const auto& item : dense.model->named_parameters())
      EXPECT_TRUE(at::equal(run.parameter(item.key()), item.value().detach())) << init << " " << item.key();
    run.steps(1);  // and then it trains
    EXPECT_FALSE(at::equal(run.parameter("blocks.0.mlp.fc1.weight"),
                           dense.model->named_parameters()["blocks.0.mlp.fc1.weight"].detach()));
  }
}

TEST_F(Upcycle, ExpertsAreMadeOfTheSourcesFfnsAndTheRestIsTheSources) {
  const TinyRun run(from("init: drop, layers: [1]"));
  const LoadedModel dense = load_model(source(), "last");
  const auto parameters = dense.model->named_parameters();
  ASSERT_EQ(run.state.banks.size(), 1u);
  for (const char* name : {"head.weight", "blocks.0.mlp.fc1.weight", "blocks.1.attn.qkv.weight"})
    EXPECT_TRUE(at::equal(run.parameter(name), parameters[name].detach())) << name;
  const at::Tensor fc1 = run.state.banks[0].expert_tensors()[0];
  const at::Tensor same = fc1.eq(parameters["blocks.1.mlp.fc1.weight"].detach()).all(2).sum(1);
  EXPECT_TRUE(at::equal(same, at::full({4}, 32, at::kLong))) << same;  // half of 64 units
}

TEST_F(Upcycle, TheDifferenceIsRecordedAndTheStateKeepsItsBits) {
  struct Case {
    const char* fusion;
    double start, fused;
  };
  for (const Case& c : {Case{"init: copy, weights: memory, experts: 3", 0.0, 1e-5},
                        Case{"init: split, experts: 3", 0.0, 1e-5}, Case{"init: drop", 1e3, 1e3}}) {
    TinyRun run(from(c.fusion));
    const auto before = snapshot(run.state);
    const TestFolder folder;
    log_upcycling(run.config, run.state, *run.data.test, folder.path());
    expect_equal_bits(snapshot(run.state), before);
    const auto record = nlohmann::json::parse(read_bytes(folder / "start.json"));
    EXPECT_EQ(record["images"], 37);
    EXPECT_LE(record["step_0"]["max_logit_difference"], c.start) << c.fusion;
    EXPECT_LE(record["first_fusion"]["max_logit_difference"], c.fused) << c.fusion;
    if (c.start > 0) {
      EXPECT_GT(record["step_0"]["max_logit_difference"], 1e-3);
      EXPECT_GT(record["step_0"]["mean_kl"], 0.0);
    } else {
      EXPECT_EQ(record["step_0"]["top1_agreement"], 1.0);
    }
  }
}

TEST_F(Upcycle, OnlyTheStartOfAnUpcycledRunIsMeasured) {
  const TestFolder folder;
  TinyRun fresh({"fusion={}"}), dense, going_on(from("init: split"));
  going_on.steps(1);
  for (TinyRun* run : {&fresh, &dense, &going_on})
    log_upcycling(run->config, run->state, *run->data.test, folder.path());
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

TEST_F(Upcycle, FineTuningStartsFromEverythingThatHoldsADenseModel) {
  const LoadedModel dense = load_model(source(), "last");
  for (const fs::path& path : {source(), source() / "checkpoints/latest", source() / "export",
                               source() / "export/model.safetensors"}) {
    const TinyRun run({"init_from=" + path.string(), "seed=4"});
    EXPECT_TRUE(
        at::equal(run.parameter("head.weight"), dense.model->named_parameters()["head.weight"].detach()))
        << path;
  }
  const TinyRun other({"init_from=" + source().string(), "init_skip=[head.]", "model.classes=3"});
  EXPECT_TRUE(
      at::equal(other.parameter("norm.weight"), dense.model->named_parameters()["norm.weight"].detach()));
}

TEST_F(Upcycle, AnUnsuitableSourceIsRefused) {
  expect_error<FormatError>(
      [] {
        TinyRun({"init_from=" + source().string(), "model.classes=3"});
      },
      {"'head.weight' is [4, 16], expected [3, 16]", "'head.bias'", "init_skip"});
  expect_error<FormatError>(
      [] {
        TinyRun({"init_from=" + source().string(), "model.heads=4"});
      },
      {"2 attention heads", "model.heads is 4"});
  expect_error<FormatError>(
      [] {
        TinyRun({"init_from=" + (source() / "export").string(), "model.heads=4"});
      },
      {"2 attention heads"});
  expect_error<FormatError>([] { TinyRun({"init_from=" + (*root_ / "none").string()}); },
                            {"none", "no such"});
  fs::create_directories(*root_ / "empty");
  expect_error<FormatError>([] { TinyRun({"init_from=" + (*root_ / "empty").string()}); },
                            {"empty", "model.safetensors"});
  write_bytes(*root_ / "weights.pth", "PK");
  expect_error<FormatError>([] { TinyRun({"init_from=" + (*root_ / "weights.pth").string()}); },
                            {"weights.pth", ".safetensors", "docs/upcycling.md"});
}

// ---- folders of exfusion-upcycle

TEST_F(Upcycle, AFolderHoldsWhatARunWithTheSameInitAndSeedStartsFrom) {
  FusionConfig drop = fusion_of("drop", 3);
  drop.permute = true;
  drop.layers = {"last:1"};
  const fs::path folder = written(drop, "drop");
  const TinyRun direct(from("init: drop, permute: true, experts: 3, layers: last:1"));
  TinyRun run = stored(folder, "experts: 3, layers: last:1");
  for (const auto& item : direct.state.model->named_parameters())
    EXPECT_TRUE(at::equal(run.parameter(item.key()), item.value().detach())) << item.key();
  for (std::size_t t = 0; t < 4; ++t)
    EXPECT_TRUE(at::equal(run.state.banks[0].expert_tensors()[t], direct.state.banks[0].expert_tensors()[t]));
  run.steps(1);
  const LoadedModel model = load_model(folder, "last");  // also a dense model
  EXPECT_TRUE(at::equal(model.model->named_parameters()["blocks.1.mlp.fc2.weight"].detach(),
                        direct.parameter("blocks.1.mlp.fc2.weight")));
}

TEST_F(Upcycle, TheFilesSayWhatTheyAre) {
  FusionConfig drop = fusion_of("drop");
  drop.drop_ratio = 0.25;
  const fs::path folder = written(drop, "files", 77);
  const SafetensorsFile experts((folder / "experts.safetensors").string());
  EXPECT_EQ(experts.tensors().size(), 10u);
  EXPECT_EQ(experts.tensors().at("blocks.0.mlp.fc1.weight").shape, (std::vector<std::int64_t>{4, 64, 16}));
  EXPECT_TRUE(at::equal(experts.read("blocks.1.mlp.a"), at::full({4}, 0.25)));
  const auto record = nlohmann::json::parse(read_bytes(folder / "upcycle.json"));
  EXPECT_EQ(record["init"], "drop");
  EXPECT_EQ(record["drop_ratio"], 0.25);
  EXPECT_EQ(record["permute"], false);
  EXPECT_FALSE(record.contains("noise"));
  EXPECT_EQ(record["seed"], 77);
  EXPECT_EQ(record["ffns"], (std::vector<std::string>{"blocks.0.mlp", "blocks.1.mlp"}));
  EXPECT_EQ(record["source"]["crc32"].get<std::string>().size(), 8u);
  const UpcycleRecord read = read_upcycle_record(folder);
  EXPECT_EQ(read.fusion.drop_ratio, 0.25);
  EXPECT_EQ(read.seed, 77u);
  EXPECT_EQ(parse_timm_config(read_bytes(folder / "config.json"), "config.json").vit.heads, 2);
  EXPECT_FALSE(fs::exists(*root_ / "files.tmp"));
}

TEST_F(Upcycle, ARecipeThatDoesNotFitTheFolderIsRefused) {
  const fs::path folder = written(fusion_of("drop"), "fit");
  for (const char* init : {"init: drop", "init: copy, weights: memory", "init: split"})
    expect_error<RecipeError>([&] { stored(folder, init); }, {"holds experts already", "init: drop"});
  expect_error<RecipeError>([&] { stored(folder, "experts: 3"); }, {"4 experts", "fusion.experts is 3"});
  expect_error<RecipeError>([&] { stored(folder, "layers: [1]"); },
                            {"blocks.0.mlp, blocks.1.mlp", "fusion.layers"});
  expect_error<RecipeError>([] { TinyRun(from("experts: 4")); }, {"dense model", "fusion.init"});
  const fs::path copies = written(fusion_of("copy"), "copies");
  expect_error<RecipeError>([&] { stored(copies, "weights: static"); }, {"init: copy", "never separate"});
  stored(copies, "weights: memory");
  stored(folder, "experts: 1, init: copy");  // of its dense model
}

TEST_F(Upcycle, ADamagedFolderIsRefused) {
  const fs::path folder = written(fusion_of("drop"), "whole");
  const auto damaged = [&](const std::string& file, const std::string& bytes) {
    fs::remove_all(*root_ / "damaged");
    fs::copy(folder, *root_ / "damaged");
    write_bytes(*root_ / "damaged" / file, bytes);
    return *root_ / "damaged";
  };
  for (const char* file : {"experts.safetensors", "model.safetensors", "config.json"}) {
    std::string bytes = read_bytes(folder / file);
    bytes.back() ^= 1;
    const fs::path changed = damaged(file, bytes);
    expect_error<FormatError>([&] { read_upcycle_record(changed); }, {file, "changed"});
  }
  const auto record = nlohmann::json::parse(read_bytes(folder / "upcycle.json"));
  for (const auto& [key, value] :
       std::vector<std::pair<std::string, nlohmann::json>>{{"experts", 0},
                                                           {"experts", 1000},
                                                           {"experts", "four"},
                                                           {"format", 2},
                                                           {"ffns", "all"},
                                                           {"seed", "x"},
                                                           {"files", nlohmann::json::object()},
                                                           {"init", 3}}) {
    auto changed = record;
    changed[key] = value;
    const fs::path sick = damaged("upcycle.json", changed.dump());
    EXPECT_THROW(read_upcycle_record(sick), FormatError) << key << " " << value;
  }
  for (const char* text : {"", "[]", "{", "null"})
    EXPECT_THROW(read_upcycle_record(damaged("upcycle.json", text)), FormatError) << text;
}

TEST_F(Upcycle, OtherFoldersAreLeftAlone) {
  const LoadedModel dense = load_model(source(), "last");
  const fs::path folder = written(fusion_of("drop"), "own");
  expect_error<RunFolderError>([&] { write_upcycled(dense, fusion_of("split"), 0, folder, false); },
                               {"--overwrite"});
  write_upcycled(dense, fusion_of("split"), 0, folder, true);
  EXPECT_EQ(read_upcycle_record(folder).fusion.init, "split");
  expect_error<RunFolderError>([&] { write_upcycled(dense, fusion_of("drop"), 0, source(), true); },
                               {"upcycle.json"});
  EXPECT_TRUE(fs::exists(source() / "recipe.yaml"));
}

}  // namespace
}  // namespace exfusion
