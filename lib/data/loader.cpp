#include "data/loader.h"

#include <ATen/ops/empty.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <map>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <utility>

#include "core/duration.h"
#include "core/error.h"
#include "core/random.h"
#include "data/augment.h"

namespace exfusion {
namespace {

using Order = std::vector<std::int64_t>;

Order epoch_order(const Dataset& train, std::uint64_t seed, std::int64_t epoch) {
  return random_permutation(train.size(),
                            CounterRandom(seed, Draw::order, static_cast<std::uint32_t>(epoch)));
}

// Images and targets as empty tensors, samples in place. Everything after is written through raw pointers: an
// ATen operator on a loader thread would start OpenMP threads of its own.
Batch empty_batch(const Dataset& split, std::int64_t classes, std::vector<std::int64_t> samples,
                  bool pinned = false) {
  Batch batch;
  const auto count = static_cast<std::int64_t>(samples.size());
  const at::TensorOptions options = at::TensorOptions(at::kFloat).pinned_memory(pinned);
  batch.images = at::empty({count, split.channels, split.height, split.width}, options);
  batch.targets = at::empty({count, classes}, options);
  batch.samples = std::move(samples);
  return batch;
}

std::vector<std::int64_t> labels_of(const Dataset& split, const std::vector<std::int64_t>& samples) {
  std::vector<std::int64_t> labels;
  for (const std::int64_t sample : samples) labels.push_back(split.label(sample));
  return labels;
}

// Writes augmented, not yet mixed images.
class ImageWriter {
 public:
  ImageWriter(const Dataset& train, const LoaderConfig& config, std::int64_t epoch)
      : train_(train),
        config_(config),
        epoch_(static_cast<std::uint32_t>(epoch)),
        table_(normalisation_table(config.data, train.channels)) {}
  void write(std::int64_t sample, float* out) const {
    const CounterRandom random(config_.seed, Draw::augment, epoch_, static_cast<std::uint32_t>(sample));
    write_augmented(train_, sample, table_,
                    draw_augmentation(config_.data.augment, random, train_.height, train_.width), out);
  }

 private:
  const Dataset& train_;
  const LoaderConfig& config_;
  std::uint32_t epoch_;
  NormalisationTable table_;
};

// Rows from `first` on of a global batch whose samples are given, mixed with their partners. `unmixed` is a
// place to work in: memory that is new in each batch costs more than to write it.
void write_mixed(const Dataset& train, const ImageWriter& writer, const Mix& mix,
                 const std::vector<std::int64_t>& samples, std::int64_t first, std::int64_t count,
                 std::vector<float>& unmixed, float* out) {
  const std::int64_t pixels = train.channels * train.height * train.width;
  std::vector<std::int64_t> places(samples.size(), -1);  // in `unmixed`, of the images in use
  std::int64_t used = 0;
  for (std::int64_t row = first; row < first + count; ++row) {
    for (const std::int64_t image : {row, mix.partner[static_cast<std::size_t>(row)]}) {
      std::int64_t& place = places[static_cast<std::size_t>(image)];
      if (place < 0) place = used++;
    }
  }
  unmixed.resize(static_cast<std::size_t>(used * pixels));
  for (std::size_t image = 0; image < samples.size(); ++image) {
    if (places[image] >= 0) writer.write(samples[image], unmixed.data() + places[image] * pixels);
  }
  for (auto row = static_cast<std::size_t>(first); row < static_cast<std::size_t>(first + count); ++row) {
    const auto partner = static_cast<std::size_t>(mix.partner[row]);
    mix_image(mix, unmixed.data() + places[row] * pixels, unmixed.data() + places[partner] * pixels,
              train.channels, train.height, train.width, out);
    out += pixels;
  }
}

// As make_batch, given the permutation of the step's epoch.
Batch make_batch_in_order(const Dataset& train, const LoaderConfig& config, std::int64_t step,
                          const Order& order, std::vector<float>& unmixed) {
  const std::int64_t steps = steps_per_epoch(train, config.global_batch),
                     start = step % steps * config.global_batch,
                     count = config.count > 0 ? config.count : config.global_batch;
  const auto first = order.begin() + start, rows = first + config.first;
  Batch batch = empty_batch(train, config.classes, {rows, rows + count}, config.pinned);
  batch.step = step;
  batch.first = config.first;
  batch.all = config.global_batch;
  batch.epoch = step / steps;

  const std::vector<std::int64_t> samples(first, first + config.global_batch);
  const AugmentConfig& augment = config.data.augment;
  const CounterRandom random(config.seed, Draw::mix, 0, static_cast<std::uint32_t>(step));
  const Mix mix = draw_mix(augment, random, config.global_batch, train.height, train.width);
  const ImageWriter writer(train, config, batch.epoch);
  auto* images = batch.images.data_ptr<float>();
  if (mix.partner.empty()) {
    for (const std::int64_t sample : batch.samples) {
      writer.write(sample, images);
      images += train.channels * train.height * train.width;
    }
  } else {
    write_mixed(train, writer, mix, samples, config.first, count, unmixed, images);
  }
  write_targets(mix, labels_of(train, samples), config.first, count, config.classes, augment.smoothing,
                batch.targets.data_ptr<float>());
  return batch;
}

// The permutations of the epochs in use: shuffling all images once per epoch is cheap, once per step is not.
class OrderCache {
 public:
  std::shared_ptr<const Order> get(const Dataset& train, std::uint64_t seed, std::int64_t epoch) {
    const std::scoped_lock lock(mutex_);
    auto& [cached_epoch, order] = slots_[static_cast<std::size_t>(epoch % 2)];
    if (cached_epoch != epoch) {
      order = std::make_shared<const Order>(epoch_order(train, seed, epoch));
      cached_epoch = epoch;
    }
    return order;
  }

 private:
  std::mutex mutex_;
  std::array<std::pair<std::int64_t, std::shared_ptr<const Order>>, 2> slots_{{{-1, nullptr}, {-1, nullptr}}};
};

}  // namespace

std::int64_t steps_per_epoch(const Dataset& train, std::int64_t global_batch) {
  if (global_batch < 1 || global_batch > train.size()) {
    throw DataError(
        fmt::format("train.global_batch is {}, the training set has {} images: it has to be 1 .. {}",
                    global_batch, train.size(), train.size()));
  }
  return train.size() / global_batch;
}

Batch to_device(Batch batch, c10::Device device) {
  batch.images = batch.images.to(device, /*non_blocking=*/true);
  batch.targets = batch.targets.to(device, /*non_blocking=*/true);
  return batch;
}

Batch make_batch(const Dataset& train, const LoaderConfig& config, std::int64_t step) {
  const std::int64_t epoch = step / steps_per_epoch(train, config.global_batch);
  std::vector<float> unmixed;
  return make_batch_in_order(train, config, step, epoch_order(train, config.seed, epoch), unmixed);
}

// Threads take steps in order; a batch waits in `made` until next() asks for it.
struct Loader::State {
  struct Made {
    Batch batch;
    std::exception_ptr error;
  };

  std::shared_ptr<const Dataset> train;
  LoaderConfig config;
  std::int64_t end_step, steps, next_to_make, next_to_give;
  OrderCache orders;

  std::mutex mutex;  // of what follows and the two steps above
  std::condition_variable batch_made, room;
  std::map<std::int64_t, Made> made;
  bool stopping = false;
  double wait_seconds = 0.0;
  std::vector<std::thread> threads;

  bool may_make() const {
    return next_to_make < end_step && next_to_make < next_to_give + config.data.workers + 2;
  }

  Made make(std::int64_t step, std::vector<float>& unmixed) {
    try {
      const auto order = orders.get(*train, config.seed, step / steps);
      return {make_batch_in_order(*train, config, step, *order, unmixed), nullptr};
    } catch (...) {
      return {{}, std::current_exception()};
    }
  }

  void work() {
    std::vector<float> unmixed;
    std::unique_lock lock(mutex);
    while (true) {
      room.wait(lock, [&] { return stopping || next_to_make == end_step || may_make(); });
      if (stopping || next_to_make == end_step) return;
      const std::int64_t step = next_to_make++;
      lock.unlock();
      Made result = make(step, unmixed);
      lock.lock();
      made.emplace(step, std::move(result));
      batch_made.notify_one();
    }
  }

  void stop() {
    {
      const std::scoped_lock lock(mutex);
      stopping = true;
    }
    room.notify_all();
    for (std::thread& thread : threads) thread.join();
  }
};

Loader::Loader(std::shared_ptr<const Dataset> train, LoaderConfig config, std::int64_t first_step,
               std::int64_t end_step)
    : state_(std::make_unique<State>()) {
  state_->steps = exfusion::steps_per_epoch(*train, config.global_batch);
  state_->train = std::move(train);
  state_->config = std::move(config);
  state_->next_to_make = state_->next_to_give = first_step;
  state_->end_step = std::max(first_step, end_step);
  try {
    for (std::int64_t worker = 0; worker < state_->config.data.workers; ++worker) {
      state_->threads.emplace_back([state = state_.get()] { state->work(); });
    }
  } catch (...) {  // the system has no more threads: those that run must end before their state does
    state_->stop();
    throw;
  }
}

Loader::~Loader() {
  state_->stop();
}

Batch Loader::next() {
  State& state = *state_;
  const auto start = std::chrono::steady_clock::now();
  std::unique_lock lock(state.mutex);
  if (state.next_to_give == state.end_step) {
    throw std::out_of_range(fmt::format("the loader ends before step {}", state.end_step));
  }
  state.batch_made.wait(lock, [&] { return state.made.contains(state.next_to_give); });
  state.wait_seconds = seconds_since(start);
  const auto found = state.made.find(state.next_to_give);
  if (found->second.error) std::rethrow_exception(found->second.error);
  Batch batch = std::move(found->second.batch);
  state.made.erase(found);
  ++state.next_to_give;
  lock.unlock();
  state.room.notify_all();
  return batch;
}

double Loader::wait_seconds() const {
  const std::scoped_lock lock(state_->mutex);
  return state_->wait_seconds;
}

Batch evaluation_batch(const Dataset& split, const DataConfig& config, std::int64_t classes,
                       std::int64_t first, std::int64_t count) {
  if (first < 0 || count < 0 || count > split.size() - first) {
    throw std::out_of_range(
        fmt::format("images {} .. {} of a split of {} images", first, first + count - 1, split.size()));
  }
  std::vector<std::int64_t> samples(static_cast<std::size_t>(count));
  std::iota(samples.begin(), samples.end(), first);
  Batch batch = empty_batch(split, classes, std::move(samples));
  const NormalisationTable table = normalisation_table(config, split.channels);
  float* out = batch.images.data_ptr<float>();
  for (const std::int64_t sample : batch.samples) {
    write_augmented(split, sample, table, {}, out);
    out += split.channels * split.height * split.width;
  }
  batch.all = count;
  write_targets({}, labels_of(split, batch.samples), 0, count, classes, 0.0, batch.targets.data_ptr<float>());
  return batch;
}

}  // namespace exfusion
