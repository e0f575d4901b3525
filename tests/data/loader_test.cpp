#include "data/loader.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <set>
#include <thread>

#include "core/error.h"
#include "core/random.h"
#include "data/augment.h"

namespace exfusion {
namespace {

constexpr ImageShape kLoaderShape{2, 6, 3};

LoaderConfig loader_config(std::int64_t workers = 1) {
  LoaderConfig config;
  config.data.name = "synthetic";
  config.data.workers = workers;
  config.data.synthetic_train = 50;
  config.data.synthetic_test = 10;
  config.data.augment = {0.5, 2, 0.5, 0.4, 1.0, 0.1};
  config.seed = 11;
  config.global_batch = 8;
  config.classes = 3;
  return config;
}

std::shared_ptr<const Dataset> train_split(const LoaderConfig& config) {
  return make_datasets(config.data, config.seed, kLoaderShape).train;
}

void expect_equal(const Batch& a, const Batch& b) {
  EXPECT_EQ(a.step, b.step);
  EXPECT_EQ(a.epoch, b.epoch);
  EXPECT_EQ(a.samples, b.samples);
  EXPECT_TRUE(at::equal(a.images, b.images)) << a.step;
  EXPECT_TRUE(at::equal(a.targets, b.targets)) << a.step;
}

// Counts what is read, and throws at one image if asked to.
class CountingDataset : public Dataset {
 public:
  explicit CountingDataset(std::int64_t bad = -1) : bad_(bad) { channels = height = width = 1; }
  std::int64_t size() const override { return 20; }
  std::span<const std::uint8_t> image(std::int64_t index) const override {
    ++read;
    if (index == bad_) throw DataError("image 7 is damaged");
    return {&pixel_, 1};
  }
  std::int64_t label(std::int64_t) const override { return 0; }
  mutable std::atomic<std::int64_t> read = 0;

 private:
  std::int64_t bad_;
  std::uint8_t pixel_ = 3;
};

LoaderConfig counting_config(std::int64_t workers) {
  LoaderConfig config;
  config.data.workers = workers;
  config.global_batch = 5;
  config.classes = 1;
  return config;
}

TEST(Loader, AnyNumberOfWorkersGivesTheSameBatchesInOrder) {
  for (const std::int64_t workers : {1, 2, 5}) {
    const LoaderConfig config = loader_config(workers);
    const auto train = train_split(config);
    Loader loader(train, config, 0, 20);
    for (std::int64_t step = 0; step < 20; ++step)
      expect_equal(loader.next(), make_batch(*train, config, step));
    EXPECT_THROW(loader.next(), std::out_of_range);
  }
}

TEST(Loader, AStartInTheMiddleGivesTheBatchesOfTheWholeRun) {
  const LoaderConfig config = loader_config(2);
  const auto train = train_split(config);
  Loader loader(train, config, 13, 15);
  expect_equal(loader.next(), make_batch(*train, config, 13));
  expect_equal(loader.next(), make_batch(*train, config, 14));
}

TEST(Loader, AnEpochTakesWholeBatchesOfItsPermutation) {
  const LoaderConfig config = loader_config();
  const auto train = train_split(config);
  ASSERT_EQ(steps_per_epoch(*train, 8), 6);
  for (const std::uint32_t epoch : {0u, 1u}) {
    const auto order = random_permutation(50, CounterRandom(config.seed, Draw::order, epoch));
    std::vector<std::int64_t> seen;
    for (std::int64_t step = epoch * 6; step < (epoch + 1) * 6; ++step) {
      const Batch batch = make_batch(*train, config, step);
      EXPECT_EQ(batch.epoch, epoch);
      seen.insert(seen.end(), batch.samples.begin(), batch.samples.end());
    }
    EXPECT_EQ(seen, std::vector<std::int64_t>(order.begin(), order.begin() + 48));
    EXPECT_EQ(std::set(seen.begin(), seen.end()).size(), 48u);
  }
}

TEST(Loader, AGlobalBatchThatIsNotThereIsADataError) {
  const LoaderConfig config = loader_config();
  const auto train = train_split(config);
  EXPECT_EQ(steps_per_epoch(*train, 50), 1);
  EXPECT_THROW(steps_per_epoch(*train, 51), DataError);
  EXPECT_THROW(steps_per_epoch(*train, 0), DataError);
}

TEST(Loader, WhatAThreadThrowsComesOutOfNextInItsTurn) {
  for (const std::int64_t workers : {1, 3}) {
    const auto train = std::make_shared<CountingDataset>(7);
    Loader loader(train, counting_config(workers), 0, 4);
    int good = 0;
    try {
      while (true) loader.next(), ++good;
    } catch (const DataError& error) {
      EXPECT_STREQ(error.what(), "image 7 is damaged");
    }
    const auto order = random_permutation(20, CounterRandom(0, Draw::order, 0));
    EXPECT_EQ(good, (std::find(order.begin(), order.end(), 7) - order.begin()) / 5);
    EXPECT_THROW(loader.next(), DataError);  // and does not hang
  }
}

TEST(Loader, OnlyAFewBatchesAreMadeAhead) {
  const auto train = std::make_shared<CountingDataset>();
  Loader loader(train, counting_config(2), 0, 1'000'000);
  const std::int64_t most = (2 + 2) * 5;
  for (int wait = 0; wait < 2000 && train->read < most; ++wait) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(train->read, most);
  loader.next();
  EXPECT_LT(loader.wait_seconds(), 1.0);
}

TEST(Loader, EndsWithoutBeingAsked) {
  const auto train = std::make_shared<CountingDataset>();
  for (int i = 0; i < 200; ++i) {
    Loader loader(train, counting_config(1 + i % 4), 0, i % 5);
    if (i % 5 == 4) loader.next();
  }
}

TEST(Batch, ASamplesImageDependsOnSeedEpochAndSampleOnly) {
  LoaderConfig config = loader_config();
  config.data.augment.mixup = config.data.augment.cutmix = 0.0;  // what mixes belongs to the global batch
  const auto train = train_split(config);
  const Batch batch = make_batch(*train, config, 3);
  config.global_batch = 2;  // another cut into steps: the same images at the same places of the epoch
  for (std::int64_t part = 0; part < 4; ++part) {
    const Batch small = make_batch(*train, config, 12 + part);
    EXPECT_TRUE(at::equal(small.images, batch.images.narrow(0, 2 * part, 2)));
  }
}

TEST(Batch, RowsOfAGlobalBatchAreThoseOfTheWhole) {
  LoaderConfig config = loader_config();
  config.data.augment.mixup = config.data.augment.cutmix = 0.5;
  const auto train = train_split(config);
  for (std::int64_t step = 0; step < 6; ++step) {  // steps of mixup and of cutmix
    config.first = config.count = 0;
    const Batch whole = make_batch(*train, config, step);
    for (const auto& [first, count] : {std::pair{0, 3}, {3, 1}, {4, 4}}) {
      config.first = first;
      config.count = count;
      const Batch rows = make_batch(*train, config, step);
      EXPECT_TRUE(at::equal(rows.images, whole.images.narrow(0, first, count)));
      EXPECT_TRUE(at::equal(rows.targets, whole.targets.narrow(0, first, count)));
      EXPECT_TRUE(std::equal(rows.samples.begin(), rows.samples.end(), whole.samples.begin() + first));
      EXPECT_EQ(rows.epoch, whole.epoch);
    }
  }
}

TEST(Batch, NewEpochsAugmentAnewAndSeedsDiffer) {
  LoaderConfig config = loader_config();
  config.global_batch = 50;
  const auto train = train_split(config);
  const Batch first = make_batch(*train, config, 0), second = make_batch(*train, config, 1);
  EXPECT_NE(first.samples, second.samples);
  config.seed = 12;
  EXPECT_NE(make_batch(*train, config, 0).samples, first.samples);
}

TEST(Batch, TargetsSumToOneAndMixWithTheDrawnLambda) {
  const LoaderConfig config = loader_config();
  const auto train = train_split(config);
  const Batch batch = make_batch(*train, config, 4);
  EXPECT_LT((batch.targets.sum(1) - 1).abs().max().item<double>(), 1e-6);
  const Mix mix = draw_mix(config.data.augment, CounterRandom(config.seed, Draw::mix, 0, 4), 8, 6, 6);
  const at::Tensor labels = at::empty({8}, at::kLong);
  for (std::int64_t i = 0; i < 8; ++i) labels[i] = train->label(batch.samples[static_cast<std::size_t>(i)]);
  const at::Tensor own = at::one_hot(labels, 3).to(at::kDouble) * 0.9 + 0.1 / 3;
  const at::Tensor mixed = own * mix.lambda + own.index_select(0, at::tensor(mix.partner)) * (1 - mix.lambda);
  EXPECT_TRUE(at::allclose(batch.targets.to(at::kDouble), mixed, 1e-6, 1e-7));
}

TEST(EvaluationBatch, IsPlainNormalisedImagesAndOneHotTargets) {
  const LoaderConfig config = loader_config();
  const auto train = train_split(config);
  const Batch batch = evaluation_batch(*train, config.data, 3, 48, 2);
  EXPECT_EQ(batch.samples, (std::vector<std::int64_t>{48, 49}));
  for (std::int64_t i = 0; i < 2; ++i) {
    const auto image = train->image(48 + i);
    const at::Tensor bytes =
        at::tensor(std::vector<int>(image.begin(), image.end())).to(at::kFloat).view({2, 6, 6});
    EXPECT_TRUE(at::equal(batch.images[i], (bytes / 255.0 - 0.5) / 0.5));
    EXPECT_EQ(batch.targets[i].argmax().item<std::int64_t>(), train->label(48 + i));
  }
  EXPECT_EQ(batch.targets.sum().item<double>(), 2.0);
  EXPECT_EQ(batch.targets.max().item<double>(), 1.0);
  EXPECT_THROW(evaluation_batch(*train, config.data, 3, 49, 2), std::out_of_range);
}

}  // namespace
}  // namespace exfusion
