#include "data/augment.h"

#include <algorithm>
#include <cmath>

namespace exfusion {
namespace {

constexpr double kMinArea = 0.02, kMaxArea = 1.0 / 3.0, kMinAspect = 0.3;
constexpr int kEraseTries = 10;

Rectangle draw_erased(CounterRandom& random, std::int64_t height, std::int64_t width) {
  for (int attempt = 0; attempt < kEraseTries; ++attempt) {
    const double area = random.uniform(kMinArea, kMaxArea) * static_cast<double>(height * width);
    const double aspect = std::exp(random.uniform(std::log(kMinAspect), -std::log(kMinAspect)));
    Rectangle box;
    box.height = std::lround(std::sqrt(area * aspect));
    box.width = std::lround(std::sqrt(area / aspect));
    if (box.height >= height || box.width >= width) continue;
    box.top = random.below(static_cast<std::uint32_t>(height - box.height + 1));
    box.left = random.below(static_cast<std::uint32_t>(width - box.width + 1));
    return box;
  }
  return {};
}

std::int64_t draw_shift(CounterRandom& random, std::int64_t crop) {
  return static_cast<std::int64_t>(random.below(static_cast<std::uint32_t>(2 * crop + 1))) - crop;
}

}  // namespace

NormalisationTable normalisation_table(const DataConfig& config, std::int64_t channels) {
  NormalisationTable table(static_cast<std::size_t>(channels));
  for (std::size_t channel = 0; channel < table.size(); ++channel) {
    const auto mean = static_cast<float>(config.mean.at(config.mean.size() == 1 ? 0 : channel));
    const auto deviation = static_cast<float>(config.std.at(config.std.size() == 1 ? 0 : channel));
    for (int value = 0; value < 256; ++value) {
      table[channel][static_cast<std::size_t>(value)] =
          (static_cast<float>(value) / 255.0f - mean) / deviation;
    }
  }
  return table;
}

SampleAugmentation draw_augmentation(const AugmentConfig& config, CounterRandom random, std::int64_t height,
                                     std::int64_t width) {
  SampleAugmentation drawn;
  drawn.flip = random.uniform() < config.flip;
  drawn.shift_y = draw_shift(random, config.crop);
  drawn.shift_x = draw_shift(random, config.crop);
  if (random.uniform() < config.erase) drawn.erased = draw_erased(random, height, width);
  return drawn;
}

namespace {

// A row of the output: pixel x comes from place (flip ? width - 1 - x : x) + shift of the row `from`, padding
// outside of it.
void write_row(const std::uint8_t* from, std::int64_t width, std::int64_t shift, bool flip,
               const std::array<float, 256>& normalised, float* out) {
  // The pixels that are inside, as a range of x.
  const std::int64_t offset = flip ? -shift : shift;
  const std::int64_t first = std::clamp<std::int64_t>(-offset, 0, width);
  const std::int64_t end = std::clamp(width - offset, first, width);
  std::fill_n(out, first, normalised[0]);
  if (flip) {
    const std::uint8_t* last = from + width - 1 + shift;
    for (std::int64_t x = first; x < end; ++x) out[x] = normalised[last[-x]];
  } else {
    for (std::int64_t x = first; x < end; ++x) out[x] = normalised[from[x + shift]];
  }
  std::fill(out + end, out + width, normalised[0]);
}

}  // namespace

void write_augmented(const Dataset& dataset, std::int64_t index, const NormalisationTable& table,
                     const SampleAugmentation& augmentation, float* out) {
  const std::int64_t height = dataset.height, width = dataset.width;
  const std::uint8_t* image = dataset.image(index).data();
  const Rectangle& erased = augmentation.erased;
  for (std::int64_t channel = 0; channel < dataset.channels; ++channel) {
    const auto& normalised = table[static_cast<std::size_t>(channel)];
    for (std::int64_t y = 0; y < height; ++y) {
      const std::int64_t from_y = y + augmentation.shift_y;
      if (from_y < 0 || from_y >= height) {
        std::fill_n(out + y * width, width, normalised[0]);
      } else {
        write_row(image + from_y * width, width, augmentation.shift_x, augmentation.flip, normalised,
                  out + y * width);
      }
    }
    for (std::int64_t y = erased.top; y < erased.top + erased.height; ++y) {
      std::fill_n(out + y * width + erased.left, erased.width, 0.0f);
    }
    image += height * width;
    out += height * width;
  }
}

Rectangle cutmix_box(double lambda, std::int64_t centre_y, std::int64_t centre_x, std::int64_t height,
                     std::int64_t width) {
  const double ratio = std::sqrt(1.0 - lambda);
  const auto cut_height = static_cast<std::int64_t>(static_cast<double>(height) * ratio);
  const auto cut_width = static_cast<std::int64_t>(static_cast<double>(width) * ratio);
  Rectangle box;
  box.top = std::clamp<std::int64_t>(centre_y - cut_height / 2, 0, height);
  box.left = std::clamp<std::int64_t>(centre_x - cut_width / 2, 0, width);
  box.height = std::clamp<std::int64_t>(centre_y + (cut_height + 1) / 2, 0, height) - box.top;
  box.width = std::clamp<std::int64_t>(centre_x + (cut_width + 1) / 2, 0, width) - box.left;
  return box;
}

Mix draw_mix(const AugmentConfig& config, CounterRandom random, std::int64_t count, std::int64_t height,
             std::int64_t width) {
  Mix mix;
  if (config.mixup == 0.0 && config.cutmix == 0.0) return mix;
  const bool prefer_cutmix = random.uniform() < 0.5;
  mix.cutmix = config.cutmix > 0.0 && (config.mixup == 0.0 || prefer_cutmix);
  const double alpha = mix.cutmix ? config.cutmix : config.mixup;
  mix.lambda = random.beta(alpha, alpha);
  if (mix.cutmix) {
    const std::int64_t centre_y = random.below(static_cast<std::uint32_t>(height));
    const std::int64_t centre_x = random.below(static_cast<std::uint32_t>(width));
    mix.box = cutmix_box(mix.lambda, centre_y, centre_x, height, width);
    mix.lambda =
        1.0 - static_cast<double>(mix.box.height * mix.box.width) / static_cast<double>(height * width);
  }
  mix.partner = random_permutation(count, random);
  return mix;
}

void mix_image(const Mix& mix, const float* image, const float* partner, std::int64_t channels,
               std::int64_t height, std::int64_t width, float* mixed) {
  const std::int64_t pixels = channels * height * width;
  if (!mix.cutmix) {
    const auto own = static_cast<float>(mix.lambda), other = static_cast<float>(1.0 - mix.lambda);
    for (std::int64_t i = 0; i < pixels; ++i) mixed[i] = own * image[i] + other * partner[i];
    return;
  }
  std::copy_n(image, pixels, mixed);
  for (std::int64_t channel = 0; channel < channels; ++channel) {
    for (std::int64_t y = mix.box.top; y < mix.box.top + mix.box.height; ++y) {
      const std::int64_t start = (channel * height + y) * width + mix.box.left;
      std::copy_n(partner + start, mix.box.width, mixed + start);
    }
  }
}

void write_targets(const Mix& mix, std::span<const std::int64_t> labels, std::int64_t first,
                   std::int64_t count, std::int64_t classes, double smoothing, float* targets) {
  const double off = smoothing / static_cast<double>(classes), hot = 1.0 - smoothing;  // on = off + hot
  for (auto index = static_cast<std::size_t>(first); index < static_cast<std::size_t>(first + count);
       ++index, targets += classes) {
    const std::int64_t label = labels[index];
    const std::int64_t other =
        mix.partner.empty() ? label : labels[static_cast<std::size_t>(mix.partner[index])];
    std::fill_n(targets, classes, static_cast<float>(off));
    if (other == label) {
      targets[label] = static_cast<float>(off + hot);
    } else {
      targets[label] = static_cast<float>(off + mix.lambda * hot);
      targets[other] = static_cast<float>(off + (1.0 - mix.lambda) * hot);
    }
  }
}

}  // namespace exfusion
