// What happens to images between the data set and the model: per sample flip, crop, normalisation and
// erasing, per global batch mixup or cutmix. Drawing is apart from applying, so that tests can state what was
// drawn.
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "core/random.h"
#include "data/dataset.h"

namespace exfusion {

struct Rectangle {
  std::int64_t top = 0, left = 0, height = 0, width = 0;
};

// (v / 255 - mean) / std in fp32 for each channel and byte v, rounded as torchvision's ToTensor and Normalize
// do.
using NormalisationTable = std::vector<std::array<float, 256>>;
NormalisationTable normalisation_table(const DataConfig& config, std::int64_t channels);

// What is drawn for one sample, in this order and whether switched on or not: so one option does not shift
// the draws of another.
struct SampleAugmentation {
  bool flip = false;
  std::int64_t shift_y = 0,
               shift_x = 0;  // -crop .. crop; where the crop starts, seen from the unpadded image
  Rectangle erased;          // empty: nothing is erased
};
// The rectangle as in timm's RandomErasing: area 0.02 .. 1/3 of the image, aspect ratio 0.3 .. 1/0.3 uniform
// in its logarithm, strictly smaller than the image, at most 10 tries.
SampleAugmentation draw_augmentation(const AugmentConfig& config, CounterRandom random, std::int64_t height,
                                     std::int64_t width);

// Writes one image, fp32 [channels, height, width]: padded with pixel value 0, cropped, flipped, normalised,
// erased to 0.
void write_augmented(const Dataset& dataset, std::int64_t index, const NormalisationTable& table,
                     const SampleAugmentation& augmentation, float* out);

// What is drawn for one global batch. Image i becomes lambda * image i + (1 - lambda) * image partner[i]
// (mixup), or has `box` replaced by that of partner[i] (cutmix, where lambda is the share of the image
// outside the box).
struct Mix {
  bool cutmix = false;
  double lambda = 1.0;
  Rectangle box;
  std::vector<std::int64_t> partner;  // a permutation; empty: nothing is mixed
};
// `partner` has `count` entries. When both are on, each is as likely (timm's switch_prob 0.5); the box as
// timm's rand_bbox: sides sqrt(1 - lambda) of the image's, centre uniform, clipped at the borders.
Mix draw_mix(const AugmentConfig& config, CounterRandom random, std::int64_t count, std::int64_t height,
             std::int64_t width);

// The box around (centre_y, centre_x) that a cutmix `lambda` asks for, before lambda is corrected.
Rectangle cutmix_box(double lambda, std::int64_t centre_y, std::int64_t centre_x, std::int64_t height,
                     std::int64_t width);

// One image [channels, height, width] and its partner's -> mixed, another buffer of that size.
void mix_image(const Mix& mix, const float* image, const float* partner, std::int64_t channels,
               std::int64_t height, std::int64_t width, float* mixed);

// The labels of a global batch -> targets [count, classes] of its rows from `first` on: one-hot, smoothed
// (off: smoothing / classes, on: 1 - smoothing + off), mixed.
void write_targets(const Mix& mix, std::span<const std::int64_t> labels, std::int64_t first,
                   std::int64_t count, std::int64_t classes, double smoothing, float* targets);

}  // namespace exfusion
