#include "data/dataset.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "core/error.h"
#include "core/recipe.h"
#include "data_files.h"

namespace exfusion {
namespace {

constexpr ImageShape kSyntheticShape{1, 8, 4};

DataConfig synthetic(std::int64_t train = 40, std::int64_t test = 20) {
  DataConfig config;
  config.name = "synthetic";
  config.synthetic_train = train;
  config.synthetic_test = test;
  return config;
}

DataConfig parse(const std::string& text) {
  Recipe recipe = Recipe::parse("data: " + text + "\n", "test.yaml");
  DataConfig config = DataConfig::parse(recipe.root().child("data"));
  recipe.finish();
  return config;
}

void expect_refused(const std::string& text, const std::string& fragment) {
  try {
    parse(text);
    ADD_FAILURE() << "accepted: " << text;
  } catch (const RecipeError& error) {
    EXPECT_NE(std::string(error.what()).find(fragment), std::string::npos) << error.what();
  }
}

std::string bytes_of(const Dataset& dataset, std::int64_t index) {
  return {dataset.image(index).begin(), dataset.image(index).end()};
}

TEST(DataConfig, EveryKeyIsRead) {
  const DataConfig config = parse(
      "{name: idx, root: /d, validation: 7, workers: 3, mean: [0.1, 0.2], std: [0.3, 0.4], "
      "augment: {flip: 0.5, crop: 2, erase: 0.25, mixup: 0.2, cutmix: 1.0, smoothing: 0.1}}");
  EXPECT_EQ(config.name, "idx");
  EXPECT_EQ(config.root, "/d");
  EXPECT_EQ(config.validation, 7);
  EXPECT_EQ(config.workers, 3);
  EXPECT_EQ(config.mean, (std::vector<double>{0.1, 0.2}));
  EXPECT_EQ(config.std, (std::vector<double>{0.3, 0.4}));
  EXPECT_EQ(config.augment.flip, 0.5);
  EXPECT_EQ(config.augment.crop, 2);
  EXPECT_EQ(config.augment.erase, 0.25);
  EXPECT_EQ(config.augment.mixup, 0.2);
  EXPECT_EQ(config.augment.cutmix, 1.0);
  EXPECT_EQ(config.augment.smoothing, 0.1);
}

TEST(DataConfig, DefaultsDependOnTheDataSet) {
  EXPECT_EQ(parse("{name: fashion_mnist}").mean, std::vector<double>{0.2860});
  EXPECT_EQ(parse("{name: fashion_mnist}").std, std::vector<double>{0.3530});
  EXPECT_EQ(parse("{name: hdf5}").mean, std::vector<double>{0.5});
  EXPECT_EQ(parse("{name: synthetic}").synthetic_train, 2048);
  EXPECT_EQ(parse("{name: synthetic, test_samples: 9}").synthetic_test, 9);
}

TEST(DataConfig, MistakesAreRefusedByName) {
  expect_refused("{name: fashion_minst}", "fashion_mnist");
  expect_refused("{root: /d}", "data.name");
  expect_refused("{name: idx, train_samples: 3}", "train_samples");
  expect_refused("{name: idx, workers: 0}", "workers");
  expect_refused("{name: idx, std: [0.0]}", "std");
  expect_refused("{name: idx, augment: {flip: 1.5}}", "flip");
  expect_refused("{name: idx, augment: {smoothing: 1.0}}", "smoothing");
  expect_refused("{name: idx, augment: {erasing: 0.5}}", "erasing");
}

TEST(MakeDatasets, WhatDoesNotFitTheModelIsADataErrorThatNamesTheKey) {
  DataConfig config = synthetic();
  config.mean = {0.5, 0.5};
  expect_data_error([&] { make_datasets(config, 1, kSyntheticShape); }, {"data.mean", "2"});
  config = synthetic();
  config.std = {};
  expect_data_error([&] { make_datasets(config, 1, kSyntheticShape); }, {"data.std"});
  config = synthetic();
  config.augment.crop = 8;
  expect_data_error([&] { make_datasets(config, 1, kSyntheticShape); }, {"data.augment.crop"});
  config = synthetic();
  config.validation = 40;
  expect_data_error([&] { make_datasets(config, 1, kSyntheticShape); }, {"data.validation", "40"});
  expect_data_error([&] { make_datasets(synthetic(100'000'000), 1, {3, 224, 10}); }, {"train_samples"});
}

TEST(MakeDatasets, TheHoldOutIsDisjointCompleteAndStable) {
  DataConfig config = synthetic();
  const Datasets whole = make_datasets(config, 5, kSyntheticShape);
  EXPECT_EQ(whole.validation, nullptr);
  config.validation = 12;
  const Datasets cut = make_datasets(config, 5, kSyntheticShape),
                 again = make_datasets(config, 5, kSyntheticShape);
  ASSERT_EQ(cut.validation->size(), 12);
  ASSERT_EQ(cut.train->size(), 28);
  EXPECT_EQ(cut.validation->channels, 1);
  EXPECT_EQ(cut.validation->height, 8);

  std::multiset<std::string> images, parts;  // noise makes every image unique
  for (std::int64_t i = 0; i < 40; ++i) images.insert(bytes_of(*whole.train, i));
  for (std::int64_t i = 0; i < 12; ++i) parts.insert(bytes_of(*cut.validation, i));
  for (std::int64_t i = 0; i < 28; ++i) parts.insert(bytes_of(*cut.train, i));
  EXPECT_EQ(std::set(images.begin(), images.end()).size(), 40u);
  EXPECT_EQ(images, parts);

  for (std::int64_t i = 0; i < 12; ++i) {
    EXPECT_EQ(bytes_of(*cut.validation, i), bytes_of(*again.validation, i));
    EXPECT_EQ(cut.validation->label(i), again.validation->label(i));
  }
  EXPECT_EQ(cut.checksum, whole.checksum);  // the same data, however it is cut
}

TEST(MakeDatasets, TheChecksumSeesEveryPixelAndLabel) {
  TestFolder folder;
  DataConfig config;
  config.name = "idx";
  config.root = folder.string();
  std::string images = idx_images(3, 8, 8), labels = idx_labels(3, 4);
  write_bytes(folder / "t10k-images-idx3-ubyte", images);
  write_bytes(folder / "t10k-labels-idx1-ubyte", labels);
  const auto checksum = [&] {
    write_bytes(folder / "train-images-idx3-ubyte", images);
    write_bytes(folder / "train-labels-idx1-ubyte", labels);
    return make_datasets(config, 1, kSyntheticShape).checksum;
  };
  std::set<std::string> seen = {checksum()};
  images.back() = static_cast<char>(images.back() ^ 1);
  seen.insert(checksum());
  labels.back() = static_cast<char>(labels.back() ^ 1);
  seen.insert(checksum());
  EXPECT_EQ(seen.size(), 3u);
  EXPECT_EQ(seen.begin()->size(), 8u);
}

TEST(Synthetic, TheSeedDecidesTheImages) {
  EXPECT_EQ(make_datasets(synthetic(), 1, kSyntheticShape).checksum,
            make_datasets(synthetic(), 1, kSyntheticShape).checksum);
  EXPECT_NE(make_datasets(synthetic(), 1, kSyntheticShape).checksum,
            make_datasets(synthetic(), 2, kSyntheticShape).checksum);
}

TEST(Synthetic, TheNearestClassMeanRecognisesTheTestSet) {
  for (const ImageShape& shape : {ImageShape{1, 28, 10}, ImageShape{3, 8, 4}}) {
    const Datasets data = make_datasets(synthetic(500, 200), 3, shape);
    const std::size_t pixels = static_cast<std::size_t>(shape.channels * shape.size * shape.size);
    std::vector<std::vector<double>> means(static_cast<std::size_t>(shape.classes),
                                           std::vector<double>(pixels));
    for (std::int64_t i = 0; i < 500; ++i) {
      auto& mean = means[static_cast<std::size_t>(data.train->label(i))];
      for (std::size_t p = 0; p < pixels; ++p) {
        mean[p] += data.train->image(i)[p] * static_cast<double>(shape.classes) / 500;
      }
    }
    int right = 0;
    for (std::int64_t i = 0; i < 200; ++i) {
      std::vector<double> distance;
      for (const auto& mean : means) {
        double sum = 0;
        for (std::size_t p = 0; p < pixels; ++p) {
          const double difference = data.test->image(i)[p] - mean[p];
          sum += difference * difference;
        }
        distance.push_back(sum);
      }
      right += std::min_element(distance.begin(), distance.end()) - distance.begin() == data.test->label(i);
    }
    EXPECT_GE(right, 195);
  }
}

}  // namespace
}  // namespace exfusion
