// Made-up images that need no file: a coarse random pattern per class, half hidden by noise. A small model
// tells the classes apart after a few dozen steps, so tests and first runs have something to learn.
#include <fmt/format.h>

#include "core/error.h"
#include "core/random.h"
#include "data/sources.h"

namespace exfusion {
namespace {

constexpr std::int64_t kGrid = 4;  // cells a side of a class's pattern
constexpr std::uint64_t kMostBytes = std::uint64_t{8} << 30;
enum : std::uint32_t { kTrainDraw = 0, kTestDraw = 1, kPatternDraw = 2 };  // `epoch` of Draw::synthetic

// Brightness uint8 [classes, channels, kGrid, kGrid].
std::vector<std::uint8_t> make_patterns(std::uint64_t seed, const ImageShape& shape) {
  std::vector<std::uint8_t> patterns;
  for (std::int64_t label = 0; label < shape.classes; ++label) {
    CounterRandom random(seed, Draw::synthetic, kPatternDraw, static_cast<std::uint32_t>(label));
    for (std::int64_t cell = 0; cell < shape.channels * kGrid * kGrid; ++cell) {
      patterns.push_back(static_cast<std::uint8_t>(random.below(256)));
    }
  }
  return patterns;
}

// Appends one image: the mean of pattern and noise. Four noise bytes to a draw, or large images would take
// seconds.
void append_image(std::vector<std::uint8_t>& pixels, const std::uint8_t* pattern, CounterRandom random,
                  const ImageShape& shape) {
  std::uint32_t noise = 0;
  int left = 0;
  for (std::int64_t channel = 0; channel < shape.channels; ++channel) {
    for (std::int64_t y = 0; y < shape.size; ++y) {
      const std::uint8_t* row = pattern + (channel * kGrid + y * kGrid / shape.size) * kGrid;
      for (std::int64_t x = 0; x < shape.size; ++x) {
        if (left == 0) noise = random.bits(), left = 4;
        pixels.push_back(static_cast<std::uint8_t>((row[x * kGrid / shape.size] + (noise & 0xff)) / 2));
        noise >>= 8, --left;
      }
    }
  }
}

std::shared_ptr<const Dataset> make_split(std::int64_t count, std::uint32_t draw, std::uint64_t seed,
                                          const std::vector<std::uint8_t>& patterns,
                                          const ImageShape& shape) {
  const std::uint64_t each = static_cast<std::uint64_t>(shape.channels * shape.size * shape.size);
  if (static_cast<std::uint64_t>(count) > kMostBytes / each) {
    throw DataError(
        fmt::format("{} synthetic images of {} bytes exceed the limit of {} bytes: lower data.train_samples "
                    "and data.test_samples",
                    count, each, kMostBytes));
  }
  std::vector<std::uint8_t> pixels;
  std::vector<std::int64_t> labels;
  pixels.reserve(static_cast<std::uint64_t>(count) * each);
  for (std::int64_t index = 0; index < count; ++index) {
    labels.push_back(index % shape.classes);
    append_image(pixels, patterns.data() + labels.back() * shape.channels * kGrid * kGrid,
                 CounterRandom(seed, Draw::synthetic, draw, static_cast<std::uint32_t>(index)), shape);
  }
  return memory_dataset(std::move(pixels), std::move(labels), shape);
}

}  // namespace

Splits make_synthetic(const DataConfig& config, std::uint64_t seed, const ImageShape& shape) {
  const auto patterns = make_patterns(seed, shape);
  return {make_split(config.synthetic_train, kTrainDraw, seed, patterns, shape),
          make_split(config.synthetic_test, kTestDraw, seed, patterns, shape)};
}

}  // namespace exfusion
