#include "models/dense_weights.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "core/error.h"
#include "support/test_folder.h"

namespace exfusion {
namespace {

ModelConfig tiny(std::int64_t image = 8, const std::string& pool = "token") {
  ModelConfig config{.arch = "vit", .vit = {}};
  config.vit.dim = 8;
  config.vit.depth = 1;
  config.vit.heads = 2;
  config.vit.hidden = 16;
  config.vit.patch = 2;
  config.vit.image = image;
  config.vit.channels = 1;
  config.vit.classes = 3;
  config.vit.pool = pool;
  return config;
}

// A model's file, with changes.
class DenseWeights : public testing::Test {
 protected:
  DenseWeights() {
    for (const auto& [name, tensor] : model_tensors(*make_model(tiny(), 7))) tensors_[name] = tensor.clone();
  }
  std::string write() const {
    write_safetensors(file_, NamedTensors(tensors_.begin(), tensors_.end()));
    return file_;
  }
  DenseWeightsReport load(Model& model, const std::vector<std::string>& skip = {}) const {
    return load_dense_weights(model, write(), skip);
  }
  // Loading must fail with one line that has all the fragments, and leave the model as it was.
  void expect_refused(const std::vector<std::string>& fragments, const std::vector<std::string>& skip = {}) {
    const auto model = make_model(tiny(), 1);
    try {
      load(*model, skip);
      ADD_FAILURE() << "nothing was thrown";
    } catch (const FormatError& error) {
      const std::string message = error.what();
      EXPECT_EQ(message.find('\n'), std::string::npos) << message;
      for (const std::string& fragment : fragments)
        EXPECT_NE(message.find(fragment), std::string::npos) << "'" << fragment << "' is not in: " << message;
    }
    const auto untouched = make_model(tiny(), 1)->named_parameters();
    for (const auto& item : model->named_parameters())
      EXPECT_TRUE(at::equal(item.value(), untouched[item.key()])) << item.key();
  }

  TestFolder folder_;
  const std::string file_ = (folder_ / "model.safetensors").string();
  std::map<std::string, at::Tensor> tensors_;
};

TEST_F(DenseWeights, AreCopiedBitForBitAndAllNamed) {
  const auto model = make_model(tiny(), 1);
  const DenseWeightsReport report = load(*model);
  EXPECT_EQ(report.matched.size(), tensors_.size());
  EXPECT_TRUE(report.resized.empty() && report.fresh.empty() && report.left_out.empty());
  for (const auto& [name, tensor] : model_tensors(*model))
    EXPECT_TRUE(at::equal(tensor, tensors_[name])) << name;
  EXPECT_NE(report.lines().at(0).find("20 tensors"), std::string::npos) << report.lines()[0];
}

TEST_F(DenseWeights, OfHalfPrecisionAreConverted) {
  for (const at::ScalarType type : {at::kHalf, at::kBFloat16}) {
    tensors_["head.weight"] = tensors_["head.weight"].to(type);
    tensors_["blocks.0.mlp.fc1.bias"] = at::linspace(-3, 3, 16).to(type);
    const auto model = make_model(tiny(), 1);
    load(*model);
    for (const char* name : {"head.weight", "blocks.0.mlp.fc1.bias"})
      EXPECT_TRUE(at::equal(model->named_parameters()[name].detach(), tensors_[name].to(at::kFloat))) << name;
  }
}

TEST_F(DenseWeights, EveryMismatchIsNamedAtOnce) {
  tensors_.erase("norm.bias");
  tensors_["head.weight"] = at::zeros({5, 8});
  tensors_["head.bias"] = at::zeros({5});
  tensors_["dist_token"] = at::zeros({1, 1, 8});
  tensors_["blocks.0.norm1.weight"] = tensors_["blocks.0.norm1.weight"].to(at::kDouble);
  tensors_["blocks.0.norm2.bias"] = at::zeros({8}, at::kLong);
  tensors_["blocks.0.attn.qkv.bias"] = at::zeros({1, 24});
  expect_refused({file_, "'norm.bias' is missing", "'head.weight' is [5, 8], expected [3, 8]",
                  "'head.bias' is [5], expected [3]", "'dist_token' does not belong",
                  "'blocks.0.norm1.weight' is F64", "'blocks.0.norm2.bias' is I64",
                  "'blocks.0.attn.qkv.bias' is [1, 24]", "init_skip"});
}

TEST_F(DenseWeights, WhatTheRecipeNamesIsSkippedAndReported) {
  tensors_.erase("norm.bias");
  tensors_["head.weight"] = at::zeros({5, 8});
  tensors_["dist_token"] = at::zeros({1, 1, 8});
  const auto model = make_model(tiny(), 1);
  const DenseWeightsReport report = load(*model, {"head.", "norm.bias", "dist_token"});
  const auto own = make_model(tiny(), 1)->named_parameters();
  EXPECT_EQ(report.fresh, (std::vector<std::string>{"norm.bias", "head.weight", "head.bias"}));
  EXPECT_EQ(report.left_out, (std::vector<std::string>{"dist_token", "head.bias", "head.weight"}));
  EXPECT_EQ(report.matched.size(), 17u);
  for (const std::string& name : report.fresh)
    EXPECT_TRUE(at::equal(model->named_parameters()[name], own[name])) << name;
  for (const std::string& name : report.matched)
    EXPECT_TRUE(at::equal(model->named_parameters()[name], tensors_[name])) << name;
  std::string text;
  for (const std::string& line : report.lines()) text += line + "\n";
  for (const char* part :
       {"17 tensors", "own initial values: norm.bias", "left out of the file: 'dist_token'"})
    EXPECT_NE(text.find(part), std::string::npos) << text;
}

TEST_F(DenseWeights, ASkipEntryThatCoversNothingIsAProblem) {
  expect_refused({"init_skip names 'classifier.'"}, {"classifier."});
  expect_refused({"init_skip names 'head'"}, {"head"});  // no prefix without the dot
}

// ---- position embeddings

TEST_F(DenseWeights, PositionEmbeddingsOfAnotherGridAreResizedWithTheClassTokenKept) {
  for (const std::int64_t image : {4, 6, 16}) {
    const std::int64_t grid = image / 2;
    const auto model = make_model(tiny(image), 1);
    const DenseWeightsReport report = load(*model);
    const at::Tensor found = model->named_parameters()["pos_embed"].detach();
    EXPECT_EQ(found.sizes(), (at::IntArrayRef{1, 1 + grid * grid, 8}));
    EXPECT_TRUE(at::equal(found.select(1, 0), tensors_["pos_embed"].select(1, 0)));
    ASSERT_EQ(report.resized.size(), 1u);
    EXPECT_NE(report.resized[0].find("pos_embed [1, 17, 8] -> [1, "), std::string::npos) << report.resized[0];
  }
}

TEST(ResizePositionEmbedding, KeepsWhatBicubicInterpolationKeeps) {
  const at::Tensor constant = at::full({1, 16, 3}, 2.5);
  EXPECT_LE((resize_position_embedding(constant, 0, 7) - 2.5).abs().max().item<double>(), 1e-6);
  // The same grid: the interpolation is the identity.
  const at::Tensor any = at::arange(51).to(at::kFloat).view({1, 17, 3});
  EXPECT_LE((resize_position_embedding(any, 1, 4) - any).abs().max().item<double>(), 1e-5);
  // Rows stay rows: a gradient along the height is none along the width.
  const at::Tensor rows = at::arange(4).to(at::kFloat).view({1, 4, 1}).expand({1, 4, 4}).reshape({1, 16, 1});
  const at::Tensor resized = resize_position_embedding(rows, 0, 8).view({8, 8});
  EXPECT_LE((resized - resized.select(1, 0).unsqueeze(1)).abs().max().item<double>(), 1e-6);
  EXPECT_GT((resized.select(0, 7) - resized.select(0, 0)).min().item<double>(), 2.5);
}

TEST_F(DenseWeights, PositionEmbeddingsWithoutASquareGridAreRefused) {
  for (const std::int64_t rows : {0, 1, 12, 18}) {
    tensors_["pos_embed"] = at::zeros({1, rows, 8});
    expect_refused({"'pos_embed' has " + std::to_string(rows) + " positions", "square"});
  }
  tensors_["pos_embed"] = at::zeros({1, 26, 4});
  expect_refused({"'pos_embed' is [1, 26, 4], expected [1, 17, 8]"});
  tensors_["pos_embed"] = at::zeros({2, 26, 8});
  expect_refused({"'pos_embed' is [2, 26, 8]"});
}

// ---- files of any bytes

TEST_F(DenseWeights, DamagedFilesAreRefused) {
  write();
  const std::string bytes = read_bytes(file_);
  const auto model = make_model(tiny(), 1);
  for (const std::size_t length : {std::size_t{0}, std::size_t{4}, std::size_t{200}, bytes.size() - 1}) {
    write_bytes(file_, bytes.substr(0, length));
    EXPECT_THROW(load_dense_weights(*model, file_, {}), FormatError) << length;
  }
  EXPECT_THROW(load_dense_weights(*model, folder_ / "none.safetensors", {}), FileError);
}

TEST_F(DenseWeights, AHeaderThatClaimsMoreThanTheFileHoldsTakesNoMemory) {
  const std::string header =
      R"({"pos_embed":{"dtype":"F32","shape":[1,1000000000001,8],"data_offsets":[0,32000000000032]}})";
  std::uint64_t length = header.size();
  std::string bytes(reinterpret_cast<const char*>(&length), sizeof length);
  write_bytes(file_, bytes + header);
  const auto model = make_model(tiny(), 1);
  EXPECT_THROW(load_dense_weights(*model, file_, {}), FormatError);
}

TEST_F(DenseWeights, NamesFromTheFileCannotBreakTheMessage) {
  tensors_["evil\nexfusion-train: all is well"] = at::zeros({1});
  tensors_[std::string(5000, 'x')] = at::zeros({1});
  expect_refused({R"('evil\nexfusion-train)", "xxx…'"});
}

}  // namespace
}  // namespace exfusion
