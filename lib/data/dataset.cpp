#include "data/dataset.h"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/error.h"
#include "core/random.h"
#include "core/recipe.h"
#include "data/sources.h"

namespace exfusion {
namespace {

struct Source {
  const char* name;
  Splits (*build)(const DataConfig&, std::uint64_t seed, const ImageShape&);
  double mean, std;  // default normalisation, of pixels in [0, 1]
};

// Every data set: a new one is a line here.
constexpr Source kSources[] = {
    {"fashion_mnist", read_fashion_mnist, 0.2860, 0.3530},  // moments of its training set
    {"idx", read_idx, 0.5, 0.5},
    {"hdf5", read_hdf5, 0.5, 0.5},
    {"synthetic", make_synthetic, 0.5, 0.5},
};

const Source* find_source(const std::string& name) {
  for (const Source& source : kSources) {
    if (name == source.name) return &source;
  }
  return nullptr;
}

class MemoryDataset : public Dataset {
 public:
  MemoryDataset(std::vector<std::uint8_t> pixels, std::vector<std::int64_t> labels)
      : pixels_(std::move(pixels)), labels_(std::move(labels)) {}
  std::int64_t size() const override { return static_cast<std::int64_t>(labels_.size()); }
  std::span<const std::uint8_t> image(std::int64_t index) const override {
    const std::size_t bytes = static_cast<std::size_t>(channels * height * width);
    return std::span(pixels_).subspan(static_cast<std::size_t>(index) * bytes, bytes);
  }
  std::int64_t label(std::int64_t index) const override { return labels_[static_cast<std::size_t>(index)]; }

 private:
  std::vector<std::uint8_t> pixels_;  // [n, channels, height, width]
  std::vector<std::int64_t> labels_;  // [n]
};

// Some images of another data set, in a given order.
class Subset : public Dataset {
 public:
  Subset(std::shared_ptr<const Dataset> whole, std::vector<std::int64_t> indices)
      : whole_(std::move(whole)), indices_(std::move(indices)) {
    channels = whole_->channels, height = whole_->height, width = whole_->width;
  }
  std::int64_t size() const override { return static_cast<std::int64_t>(indices_.size()); }
  std::span<const std::uint8_t> image(std::int64_t index) const override {
    return whole_->image(indices_[static_cast<std::size_t>(index)]);
  }
  std::int64_t label(std::int64_t index) const override {
    return whole_->label(indices_[static_cast<std::size_t>(index)]);
  }

 private:
  std::shared_ptr<const Dataset> whole_;
  std::vector<std::int64_t> indices_;
};

void check_config(const DataConfig& config, const ImageShape& shape) {
  for (const auto& [key, values] : {std::pair("mean", &config.mean), std::pair("std", &config.std)}) {
    const std::size_t count = values->size();
    if (count != 1 && count != static_cast<std::size_t>(shape.channels)) {
      throw DataError(fmt::format("data.{} has {} values, model.channels is {}: give one, or one per channel",
                                  key, count, shape.channels));
    }
  }
  if (config.augment.crop >= shape.size) {
    throw DataError(fmt::format("data.augment.crop is {}, images have {} pixels a side: it has to be smaller",
                                config.augment.crop, shape.size));
  }
}

// Splits `train` into what is trained on and `count` held-out images, both in the order of the file.
void hold_out(Datasets& data, std::int64_t count, std::uint64_t seed) {
  const std::int64_t images = data.train->size();
  if (count >= images) {
    throw DataError(fmt::format("data.validation is {}, the training set has {} images: it has to be smaller",
                                count, images));
  }
  std::vector<std::int64_t> order = random_permutation(images, CounterRandom(seed, Draw::holdout));
  std::sort(order.begin(), order.begin() + count);
  std::sort(order.begin() + count, order.end());
  const auto whole = data.train;
  data.validation = std::make_shared<Subset>(whole, std::vector(order.begin(), order.begin() + count));
  data.train = std::make_shared<Subset>(whole, std::vector(order.begin() + count, order.end()));
}

std::string checksum_of(const Splits& splits) {
  uLong crc = crc32(0, nullptr, 0);
  for (const Dataset* split : {splits.train.get(), splits.test.get()}) {
    for (std::int64_t index = 0; index < split->size(); ++index) {
      const std::int64_t label = split->label(index);
      crc = crc32_z(crc, reinterpret_cast<const Bytef*>(&label), sizeof label);
    }
    for (std::int64_t index = 0; index < split->size(); ++index) {
      const auto image = split->image(index);
      crc = crc32_z(crc, image.data(), image.size());
    }
  }
  return fmt::format("{:08x}", crc);
}

AugmentConfig parse_augment(Section section) {
  AugmentConfig config;
  config.flip = section.in_range<double>("flip", config.flip, 0.0, 1.0);
  config.crop = section.in_range<std::int64_t>("crop", config.crop, 0, 64);
  config.erase = section.in_range<double>("erase", config.erase, 0.0, 1.0);
  config.mixup = section.in_range<double>("mixup", config.mixup, 0.0, 10.0);
  config.cutmix = section.in_range<double>("cutmix", config.cutmix, 0.0, 10.0);
  config.smoothing = section.in_range<double>("smoothing", config.smoothing, 0.0, 1.0);
  if (config.smoothing == 1.0)
    section.problem("smoothing", section.path() + ".smoothing must be less than 1: at 1 no label is left");
  return config;
}

}  // namespace

DataConfig DataConfig::parse(Section section) {
  DataConfig config;
  config.name = section.require_one_of("name", dataset_names());
  if (const Source* source = find_source(config.name))
    config.mean = {source->mean}, config.std = {source->std};
  config.root = section.get<std::string>("root", config.root);
  config.validation = section.in_range<std::int64_t>("validation", config.validation, 0, 1'000'000'000);
  config.workers = section.in_range<std::int64_t>("workers", config.workers, 1, 64);
  config.mean = section.get<std::vector<double>>("mean", config.mean);
  config.std = section.get<std::vector<double>>("std", config.std);
  if (!std::all_of(config.mean.begin(), config.mean.end(),
                   [](double value) { return std::isfinite(value); })) {
    section.problem("mean", section.path() + ".mean must be finite");
  }
  if (!std::all_of(config.std.begin(), config.std.end(),
                   [](double value) { return value > 0 && std::isfinite(value); })) {
    section.problem("std", section.path() + ".std must be greater than 0");
  }
  if (config.name == "synthetic") {
    config.synthetic_train =
        section.in_range<std::int64_t>("train_samples", config.synthetic_train, 1, 10'000'000);
    config.synthetic_test =
        section.in_range<std::int64_t>("test_samples", config.synthetic_test, 1, 10'000'000);
  }
  config.augment = parse_augment(section.child("augment"));
  return config;
}

std::vector<std::string> dataset_names() {
  std::vector<std::string> names;
  for (const Source& source : kSources) names.emplace_back(source.name);
  return names;
}

Datasets make_datasets(const DataConfig& config, std::uint64_t seed, const ImageShape& shape) {
  const Source* source = find_source(config.name);
  if (source == nullptr) {
    throw DataError(
        fmt::format("data.name is '{}', known are {}", config.name, fmt::join(dataset_names(), ", ")));
  }
  check_config(config, shape);
  const Splits splits = source->build(config, seed, shape);
  Datasets data{splits.train, nullptr, splits.test, checksum_of(splits)};
  if (config.validation > 0) hold_out(data, config.validation, seed);
  return data;
}

std::shared_ptr<const Dataset> memory_dataset(std::vector<std::uint8_t> pixels,
                                              std::vector<std::int64_t> labels, const ImageShape& shape) {
  auto dataset = std::make_shared<MemoryDataset>(std::move(pixels), std::move(labels));
  dataset->channels = shape.channels;
  dataset->height = dataset->width = shape.size;
  return dataset;
}

void check_image_shape(const std::filesystem::path& file, std::uint64_t channels, std::uint64_t height,
                       std::uint64_t width, const ImageShape& shape) {
  const auto side = static_cast<std::uint64_t>(shape.size);
  if (channels == static_cast<std::uint64_t>(shape.channels) && height == side && width == side) return;
  throw DataError(
      fmt::format("{}: images are {} x {} x {} (channels, height, width), the model takes {} x {} x {}: "
                  "set model.channels and model.image",
                  file.string(), channels, height, width, shape.channels, side, side));
}

void check_labels(const std::filesystem::path& file, const std::vector<std::int64_t>& labels,
                  std::int64_t classes) {
  for (std::size_t index = 0; index < labels.size(); ++index) {
    if (labels[index] >= 0 && labels[index] < classes) continue;
    throw DataError(fmt::format("{}: label {} of image {} is outside 0 .. {} (model.classes is {})",
                                file.string(), labels[index], index, classes - 1, classes));
  }
}

}  // namespace exfusion
