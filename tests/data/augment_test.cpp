#include "data/augment.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "data/sources.h"

namespace exfusion {
namespace {

constexpr int kDraws = 20000;

// One image [2, 5, 5] of distinct pixels.
std::shared_ptr<const Dataset> one_image() {
  std::vector<std::uint8_t> pixels(50);
  std::iota(pixels.begin(), pixels.end(), std::uint8_t{10});
  return memory_dataset(pixels, {0}, {2, 5, 1});
}

at::Tensor written(const Dataset& dataset, const DataConfig& config, const SampleAugmentation& augmentation) {
  const at::Tensor out = at::empty({dataset.channels, dataset.height, dataset.width});
  write_augmented(dataset, 0, normalisation_table(config, dataset.channels), augmentation,
                  out.data_ptr<float>());
  return out;
}

// The same with PyTorch's operators: what ToTensor, RandomCrop's padding, flip and Normalize compute.
at::Tensor expected(const Dataset& dataset, const SampleAugmentation& augmentation) {
  const at::Tensor bytes = at::tensor(std::vector<int>(dataset.image(0).begin(), dataset.image(0).end()));
  const std::int64_t pad = 2;
  at::Tensor image = at::constant_pad_nd(bytes.view({2, 5, 5}).to(at::kFloat) / 255.0, {pad, pad, pad, pad});
  image = image.slice(1, pad + augmentation.shift_y, pad + augmentation.shift_y + 5);
  image = image.slice(2, pad + augmentation.shift_x, pad + augmentation.shift_x + 5);
  if (augmentation.flip) image = image.flip(2);
  const at::Tensor mean = at::tensor({0.25f, 0.5f}).view({2, 1, 1}),
                   deviation = at::tensor({0.3f, 0.4f}).view({2, 1, 1});
  image = (image - mean) / deviation;
  const Rectangle& box = augmentation.erased;
  image.slice(1, box.top, box.top + box.height).slice(2, box.left, box.left + box.width).zero_();
  return image;
}

// Checks a frequency against its probability, 4.5 standard deviations wide.
void expect_frequency(double count, double probability, double draws = kDraws) {
  EXPECT_NEAR(count / draws, probability, 4.5 * std::sqrt(probability * (1 - probability) / draws));
}

TEST(Augment, ImagesAreWhatPyTorchsOperatorsMakeOfThem) {
  const auto dataset = one_image();
  DataConfig config;
  config.mean = {0.25, 0.5};
  config.std = {0.3, 0.4};
  for (const bool flip : {false, true}) {
    for (const std::int64_t shift : {-2, 0, 1}) {
      for (const Rectangle& box : {Rectangle{}, Rectangle{1, 2, 3, 2}}) {
        const SampleAugmentation augmentation{flip, shift, -shift, box};
        EXPECT_TRUE(at::equal(written(*dataset, config, augmentation), expected(*dataset, augmentation)))
            << flip << " " << shift << " " << box.height;
      }
    }
  }
}

TEST(Augment, OneMeanAndDeviationServeAllChannels) {
  const auto dataset = one_image();
  DataConfig one, each;
  one.mean = {0.3}, each.mean = {0.3, 0.3};
  one.std = {0.2}, each.std = {0.2, 0.2};
  EXPECT_TRUE(at::equal(written(*dataset, one, {}), written(*dataset, each, {})));
}

TEST(Augment, FlipsAndShiftsAreAsFrequentAsTheyShouldBe) {
  AugmentConfig config;
  config.flip = 0.3;
  config.crop = 2;
  double flips = 0;
  std::vector<double> shifts(25);
  for (std::uint32_t sample = 0; sample < kDraws; ++sample) {
    const auto drawn = draw_augmentation(config, CounterRandom(7, Draw::augment, 0, sample), 28, 28);
    flips += drawn.flip;
    ++shifts.at(static_cast<std::size_t>((drawn.shift_y + 2) * 5 + drawn.shift_x + 2));
    EXPECT_EQ(drawn.erased.height * drawn.erased.width, 0);
  }
  expect_frequency(flips, 0.3);
  for (const double count : shifts)
    expect_frequency(count, 1.0 / 25);  // both axes, independent of each other
}

TEST(Augment, ErasedAreaHasTheMeanOfItsDefinition) {
  // Area a uniform in [0.02, 1/3], log aspect uniform, both redrawn until a * aspect < 1 and a / aspect < 1.
  double mass = 0, mean = 0;
  const int cells = 1000;
  for (int i = 0; i < cells; ++i) {
    for (int j = 0; j < cells; ++j) {
      const double area = 0.02 + (1.0 / 3 - 0.02) * (i + 0.5) / cells;
      const double aspect = std::exp(std::log(0.3) * (1 - 2 * (j + 0.5) / cells));
      if (area * aspect < 1 && area / aspect < 1) mass += 1, mean += area;
    }
  }
  mean /= mass;
  AugmentConfig config;
  config.erase = 0.4;
  double count = 0, sum = 0;
  for (std::uint32_t sample = 0; sample < kDraws; ++sample) {
    const Rectangle box =
        draw_augmentation(config, CounterRandom(8, Draw::augment, 0, sample), 1000, 1000).erased;
    if (box.height == 0) continue;
    EXPECT_TRUE(box.top >= 0 && box.left >= 0 && box.top + box.height <= 1000 &&
                box.left + box.width <= 1000);
    const double aspect = static_cast<double>(box.height) / static_cast<double>(box.width);
    EXPECT_TRUE(aspect > 0.29 && aspect < 3.45) << aspect;
    count += 1;
    sum += static_cast<double>(box.height * box.width) / 1e6;
  }
  expect_frequency(count, 0.4);
  EXPECT_NEAR(sum / count, mean, 4.5 * 0.091 / std::sqrt(count));  // 0.091: deviation of the uniform area
}

TEST(Augment, OneOptionDoesNotShiftTheDrawsOfAnother) {
  AugmentConfig alone, together;
  alone.erase = together.erase = 0.5;
  together.flip = 0.5;
  for (std::uint32_t sample = 0; sample < 100; ++sample) {
    const CounterRandom random(9, Draw::augment, 3, sample);
    EXPECT_EQ(draw_augmentation(alone, random, 28, 28).erased.height,
              draw_augmentation(together, random, 28, 28).erased.height);
  }
}

TEST(Mix, LambdaHasTheMomentsOfItsBetaDistribution) {
  AugmentConfig config;
  config.mixup = 0.2;
  double sum = 0, squares = 0;
  for (std::uint32_t step = 0; step < kDraws; ++step) {
    const Mix mix = draw_mix(config, CounterRandom(1, Draw::mix, 0, step), 2, 28, 28);
    EXPECT_FALSE(mix.cutmix);
    sum += mix.lambda;
    squares += (mix.lambda - 0.5) * (mix.lambda - 0.5);
  }
  const double variance = 1 / (4 * (2 * 0.2 + 1));  // of Beta(a, a)
  EXPECT_NEAR(sum / kDraws, 0.5, 4.5 * std::sqrt(variance / kDraws));
  EXPECT_NEAR(squares / kDraws, variance, 4.5 * variance / std::sqrt(kDraws));
}

TEST(Mix, MixupAndCutmixTakeTurnsEvenlyAndLambdaIsTheAreaOutsideTheBox) {
  AugmentConfig config;
  config.mixup = 0.8;
  config.cutmix = 1.0;
  double cut = 0;
  for (std::uint32_t step = 0; step < kDraws; ++step) {
    const Mix mix = draw_mix(config, CounterRandom(2, Draw::mix, 0, step), 2, 20, 30);
    if (!mix.cutmix) continue;
    cut += 1;
    EXPECT_TRUE(mix.box.top >= 0 && mix.box.left >= 0 && mix.box.top + mix.box.height <= 20 &&
                mix.box.left + mix.box.width <= 30);
    EXPECT_DOUBLE_EQ(mix.lambda, 1 - static_cast<double>(mix.box.height * mix.box.width) / 600);
  }
  expect_frequency(cut, 0.5);
}

TEST(Mix, PartnersAreAPermutation) {
  AugmentConfig config;
  config.cutmix = 1.0;
  auto partner = draw_mix(config, CounterRandom(3, Draw::mix, 0, 5), 64, 8, 8).partner;
  EXPECT_FALSE(std::is_sorted(partner.begin(), partner.end()));
  std::sort(partner.begin(), partner.end());
  for (std::int64_t index = 0; index < 64; ++index)
    EXPECT_EQ(partner[static_cast<std::size_t>(index)], index);
}

void expect_box(const Rectangle& box, std::int64_t top, std::int64_t left, std::int64_t height,
                std::int64_t width) {
  EXPECT_EQ(box.top, top);
  EXPECT_EQ(box.left, left);
  EXPECT_EQ(box.height, height);
  EXPECT_EQ(box.width, width);
}

TEST(Mix, CutmixBoxesAreTimms) {
  expect_box(cutmix_box(0.75, 2, 14, 28, 28), 0, 7, 9, 14);  // sides 14, clipped at the top
  expect_box(cutmix_box(0.5, 14, 14, 28, 28), 5, 5, 19,
             19);  // sides int(19.8), the odd pixel below and right
  expect_box(cutmix_box(0.0, 27, 0, 28, 28), 13, 0, 15, 14);  // sides 28 around a corner
  expect_box(cutmix_box(1.0, 10, 10, 28, 28), 10, 10, 0, 0);
}

TEST(Mix, ImagesMixAsComputedByHand) {
  const std::vector<float> image = {1, 2, 3, 4}, partner = {10, 20, 30, 40};  // [1, 2, 2]
  std::vector<float> mixed(4);
  mix_image({false, 0.75, {}, {}}, image.data(), partner.data(), 1, 2, 2, mixed.data());
  EXPECT_EQ(mixed, (std::vector<float>{3.25, 6.5, 9.75, 13}));
  mix_image({true, 0.5, {0, 1, 2, 1}, {}}, image.data(), partner.data(), 1, 2, 2, mixed.data());
  EXPECT_EQ(mixed, (std::vector<float>{1, 20, 3, 40}));
}

TEST(Mix, TargetsMixAsComputedByHand) {
  const std::vector<std::int64_t> labels = {0, 2, 2};
  std::vector<float> targets(12);
  write_targets({false, 0.75, {}, {1, 2, 0}}, labels, 0, 3, 4, 0.1, targets.data());
  // Smoothing 0.1 over 4 classes: off 0.025, on 0.925.
  const std::vector<double> by_hand = {0.75 * 0.925 + 0.25 * 0.025,
                                       0.025,
                                       0.75 * 0.025 + 0.25 * 0.925,
                                       0.025,  //
                                       0.025,
                                       0.025,
                                       0.925,
                                       0.025,  //
                                       0.75 * 0.025 + 0.25 * 0.925,
                                       0.025,
                                       0.75 * 0.925 + 0.25 * 0.025,
                                       0.025};
  for (std::size_t i = 0; i < targets.size(); ++i)
    EXPECT_FLOAT_EQ(targets[i], static_cast<float>(by_hand[i])) << i;
}

}  // namespace
}  // namespace exfusion
