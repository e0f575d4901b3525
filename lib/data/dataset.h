// Labelled images in memory. A data set is named in the recipe and built by `make_datasets` from one visible
// table (dataset.cpp).
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace exfusion {

class Section;

struct AugmentConfig {
  double flip = 0.0;      // probability of a horizontal flip
  std::int64_t crop = 0;  // zero padding in pixels before a random crop back to size: shifts by up to so many
  double erase =
      0.0;  // probability of erasing a random rectangle (Zhong et al. 2017), to 0 after normalisation
  double mixup = 0.0;   // alpha of Beta(alpha, alpha), 0: off (Zhang et al. 2018)
  double cutmix = 0.0;  // alpha, 0: off (Yun et al. 2019); with mixup too, each step draws which of the two
  double smoothing = 0.0;  // label smoothing, < 1
};

struct DataConfig {
  std::string name;             // fashion_mnist, idx, hdf5, synthetic
  std::string root;             // folder; "" where the data set knows a default
  std::int64_t validation = 0;  // training images held out
  std::int64_t workers = 1;     // loader threads
  std::vector<double> mean = {0.5},
                      std = {0.5};  // of pixels scaled to [0, 1]: one per channel, or one for all
  std::int64_t synthetic_train = 2048, synthetic_test = 512;  // images of `synthetic`
  AugmentConfig augment;
  static DataConfig parse(Section section);  // of the recipe's `data` section
};

// Names of the data sets, for --list.
std::vector<std::string> dataset_names();

// One split. Images are uint8 [channels, height, width]. Immutable, so threads share it.
class Dataset {
 public:
  virtual ~Dataset() = default;
  virtual std::int64_t size() const = 0;
  virtual std::span<const std::uint8_t> image(
      std::int64_t index) const = 0;                         // channels * height * width bytes
  virtual std::int64_t label(std::int64_t index) const = 0;  // 0 .. classes-1
  std::int64_t channels = 0, height = 0, width = 0;
};

struct Datasets {
  std::shared_ptr<const Dataset> train, validation, test;  // validation is null when nothing is held out
  // CRC-32, 8 hex digits, of the training set's labels (int64) and pixels, hold-out included, then the test
  // set's: two runs with the same value see the same data.
  std::string checksum;
};

// What the model expects of the data; a difference is a DataError that names both.
struct ImageShape {
  std::int64_t channels, size, classes;
};

// The hold-out is drawn from (seed, size of the training set) alone. Throws DataError naming the file:
// missing, wrong magic or size, truncated, a label >= shape.classes, another image size; or naming the key:
// more images held out than there are, mean and std that do not fit the channels, a crop as large as the
// image.
Datasets make_datasets(const DataConfig& config, std::uint64_t seed, const ImageShape& shape);

}  // namespace exfusion
