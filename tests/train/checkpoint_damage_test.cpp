// Checkpoints are untrusted: whatever the bytes, an error that names the file, and no half-good state.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "io/files.h"
#include "tiny_run.h"
#include "train/checkpoint.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const std::vector<std::string> kSets = {"fusion={experts: 2, weights: learned, layers: [1]}",
                                        "train.ema=0.9"};
const std::vector<std::string> kFiles = {"model.safetensors", "experts.safetensors", "optimizer.safetensors",
                                         "ema.safetensors"};

class DamagedCheckpoint : public testing::Test {
 protected:
  DamagedCheckpoint() : run_(kSets) {
    run_.steps(1);
    CheckpointInfo info;
    info.recipe = run_.resolved;
    info.precision = "fp32";
    save_checkpoint(root_.path(), run_.state, info);
    fs::copy(folder(), root_ / "whole", fs::copy_options::recursive);
  }
  fs::path folder() const { return root_ / "step-00000001"; }
  void mend() {
    fs::remove_all(folder());
    fs::copy(root_ / "whole", folder(), fs::copy_options::recursive);
  }
  void load() {
    TinyRun fresh(kSets);
    load_checkpoint(folder(), fresh.state);
  }
  // load must refuse with an error of bad input (CheckpointError, FormatError) that names `file`.
  void expect_refused(const std::string& file, const std::vector<std::string>& fragments = {}) {
    std::vector<std::string> all = fragments;
    all.push_back(file);
    expect_error<BadInput>([&] { load(); }, all);
  }
  void change_state(const std::function<void(json&)>& change) {
    json state = json::parse(read_bytes(folder() / "state.json"));
    change(state);
    state.erase("crc32");
    state["crc32"] = text_crc32(state.dump());
    write_bytes(folder() / "state.json", state.dump());
  }
  // Writes a file and puts its size and checksum into state.json, as whoever forges a checkpoint would.
  void forge(const std::string& file, const std::string& bytes) {
    write_bytes(folder() / file, bytes);
    change_state([&](json& state) {
      state["files"][file] = {{"size", bytes.size()}, {"crc32", file_crc32(folder() / file)}};
    });
  }
  void forge(const std::string& file, const std::function<void(NamedTensors&)>& change) {
    NamedTensors tensors;
    const SafetensorsFile whole((folder() / file).string());
    for (const auto& [name, info] : whole.tensors()) tensors.emplace_back(name, whole.read(name));
    change(tensors);
    write_safetensors((root_ / "forged").string(), tensors);
    forge(file, read_bytes(root_ / "forged"));
  }

  TestFolder root_;
  TinyRun run_;
};

TEST_F(DamagedCheckpoint, WholeItIsAccepted) {
  EXPECT_NO_THROW(load());
  forge("model.safetensors", [](NamedTensors&) {});
  EXPECT_NO_THROW(load());
}

TEST_F(DamagedCheckpoint, MissingFiles) {
  for (const std::string& file : kFiles) {
    fs::remove(folder() / file);
    expect_refused(file, {"missing"});
    change_state([&](json& state) { state["files"].erase(file); });
    expect_refused(file);
    mend();
  }
  fs::remove(folder() / "state.json");
  expect_refused("state.json", {"step-00000001"});
}

TEST_F(DamagedCheckpoint, TruncatedFiles) {
  for (const std::string& file : kFiles) {
    fs::resize_file(folder() / file, fs::file_size(folder() / file) - 1);
    expect_refused(file, {"bytes"});
    fs::resize_file(folder() / file, 0);
    expect_refused(file);
    mend();
  }
}

TEST_F(DamagedCheckpoint, FlippedBytes) {
  for (const std::string& file : kFiles) {
    const std::string whole = read_bytes(folder() / file);
    for (const std::size_t place : {std::size_t{0}, std::size_t{9}, whole.size() / 2, whole.size() - 1}) {
      std::string bytes = whole;
      bytes[place] = static_cast<char>(bytes[place] ^ 1);
      write_bytes(folder() / file, bytes);
      expect_refused(file, {"checksum"});
    }
    mend();
  }
}

TEST_F(DamagedCheckpoint, TensorsThatDoNotBelongThere) {
  for (const std::string& file : kFiles) {
    forge(file, [](NamedTensors& tensors) { tensors.emplace_back("intruder", at::zeros({2})); });
    expect_refused(file, {"'intruder'"});
    mend();
  }
}

TEST_F(DamagedCheckpoint, MissingTensors) {
  for (const std::string& file : kFiles) {
    std::string name;
    forge(file, [&](NamedTensors& tensors) {
      name = tensors[1].first;
      tensors.erase(tensors.begin() + 1);
    });
    expect_refused(file, {"'" + name + "'"});
    mend();
  }
}

TEST_F(DamagedCheckpoint, TensorsOfAnotherShapeOrType) {
  for (const std::string& file : kFiles) {
    for (const bool shape : {true, false}) {
      std::string name;
      forge(file, [&](NamedTensors& tensors) {
        name = tensors[0].first;
        at::Tensor& tensor = tensors[0].second;
        tensor = shape ? at::cat({tensor.flatten(), at::zeros({1}, tensor.options())}) : tensor.to(at::kHalf);
      });
      expect_refused(file, {name});
      mend();
    }
  }
}

TEST_F(DamagedCheckpoint, FilesThatAreNoSafetensorsUnderARightChecksum) {
  for (const std::string bytes : {"", "x", "\xff\xff\xff\xff\xff\xff\xff\x7f{}", "garbage garbage garbage"}) {
    for (const std::string& file : kFiles) {
      forge(file, bytes);
      expect_refused(file);
      mend();
    }
  }
}

TEST_F(DamagedCheckpoint, WeightsOfFusionThatZDoesNotGive) {
  forge("experts.safetensors", [](NamedTensors& tensors) {
    for (auto& [name, tensor] : tensors) {
      if (name == "blocks.1.mlp.a") tensor.fill_(0.4f);
    }
  });
  expect_refused("experts", {"blocks.1.mlp.a"});
}

TEST_F(DamagedCheckpoint, AStateJsonThatIsNone) {
  const std::string whole = read_bytes(folder() / "state.json");
  const std::string nested =
      "{\"crc32\": \"0\", \"a\": " + std::string(200'000, '[') + std::string(200'000, ']') + "}";
  for (const std::string& text :
       {std::string(), std::string("garbage"), std::string("[]"), std::string("1"), nested, std::string("{}"),
        std::string("{\"format\": \"one\"}"), std::string("\0\0\0", 3), whole.substr(0, whole.size() / 2),
        std::string("\xef\xbb\xbf\xff{}")}) {
    write_bytes(folder() / "state.json", text);
    expect_refused("state.json");
  }
}

TEST_F(DamagedCheckpoint, EntriesOfStateJsonThatAreMissingOrWrong) {
  const json whole = json::parse(read_bytes(folder() / "state.json"));
  const auto expect_state_refused = [&](const std::string& what, const std::function<void(json&)>& change) {
    SCOPED_TRACE(what);
    change_state(change);
    expect_refused("step-00000001");
    mend();
  };
  for (const auto& [key, value] : whole.items()) {
    if (key == "crc32") continue;
    if (key != "world" && key != "reduction")  // older checkpoints do not have these
      expect_state_refused("no " + key, [&](json& state) { state.erase(key); });
    expect_state_refused("list for " + key, [&](json& state) { state[key] = json::array({1, 2}); });
  }
  for (const char* key : {"step", "updates", "skipped", "skipped_in_row", "samples", "world"}) {
    expect_state_refused(std::string("negative ") + key, [&](json& state) { state[key] = -1; });
    expect_state_refused(std::string("word for ") + key, [&](json& state) { state[key] = "many"; });
  }
  expect_state_refused("unknown reduction", [](json& state) { state["reduction"] = "slow"; });
  expect_state_refused("no checksum",
                       [](json& state) { state["files"]["model.safetensors"].erase("crc32"); });
  expect_state_refused("number for a file", [](json& state) { state["files"]["model.safetensors"] = 1; });
}

TEST_F(DamagedCheckpoint, AnOlderStateJsonIsThatOfOneRank) {
  change_state([](json& state) {
    state.erase("world");
    state.erase("reduction");
  });
  EXPECT_NO_THROW(load());
  EXPECT_EQ(read_checkpoint(folder()).world, 1);
  EXPECT_EQ(read_checkpoint(folder()).reduction, "fast");
}

TEST_F(DamagedCheckpoint, AStateJsonWithoutItsChecksumOrWithAnother) {
  const json whole = json::parse(read_bytes(folder() / "state.json"));
  for (const json& checksum : {json("00000000"), json(7), json::array({1, 2}), json(nullptr)}) {
    json state = whole;
    state["crc32"] = checksum;
    write_bytes(folder() / "state.json", state.dump());
    expect_refused("state.json", {"checksum"});
  }
  json flipped = whole;
  flipped["updates"] = 3;
  write_bytes(folder() / "state.json", flipped.dump());
  expect_refused("state.json", {"checksum"});
}

TEST_F(DamagedCheckpoint, ARecipeThatItsChecksumDoesNotGive) {
  change_state([](json& state) { state["recipe"] = state["recipe"].get<std::string>() + "\n"; });
  expect_refused("state.json", {"recipe"});
}

TEST_F(DamagedCheckpoint, AnotherFormat) {
  change_state([](json& state) { state["format"] = 2; });
  expect_refused("state.json", {"format 2", "reads 1"});
}

TEST_F(DamagedCheckpoint, FilesOutsideTheFolder) {
  write_bytes(root_ / "outside", "x");
  change_state([](json& state) { state["files"]["../outside"] = state["files"]["model.safetensors"]; });
  expect_refused("outside");
}

TEST_F(DamagedCheckpoint, ACheckpointOfAnotherRecipe) {
  for (const std::string other : {"fusion=none", "fusion.experts=3", "fusion.layers=[0]", "model.dim=32",
                                  "model.depth=3", "model.classes=5", "fusion.weights=static"}) {
    SCOPED_TRACE(other);
    auto sets = kSets;
    sets.push_back(other);
    TinyRun fresh(sets);
    expect_error<BadInput>([&] { load_checkpoint(folder(), fresh.state); }, {".safetensors"});
  }
}

}  // namespace
}  // namespace exfusion
