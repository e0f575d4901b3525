// Batches in the order that (seed, epoch) gives, made ahead of time by threads. What a batch holds depends on
// (seed, step) and the configuration alone: any number of threads, and any cut into micro-batches, sees the
// same inputs.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "data/dataset.h"

namespace exfusion {

struct Batch {
  std::int64_t step = 0, epoch = 0;
  std::int64_t first = 0, all = 0;  // these are rows from `first` on of a global batch of `all`
  at::Tensor images;                // [n, channels, height, width] fp32, normalised, augmented, mixed
  at::Tensor targets;               // [n, classes] fp32, each row sums to 1
  std::vector<std::int64_t>
      samples;  // [n] indices in the training set: with (seed, epoch) the key of drop path
};

// Steps of one epoch: whole global batches only. Epoch e takes the first steps_per_epoch * global_batch
// images of the permutation drawn from (seed, e); what is left over is dropped, the next epoch draws its own
// permutation of all images. Throws DataError when global_batch is less than 1 or more than there are images.
std::int64_t steps_per_epoch(const Dataset& train, std::int64_t global_batch);

struct LoaderConfig {
  DataConfig data;
  std::uint64_t seed = 0;
  std::int64_t global_batch = 0, classes = 0;
  bool pinned = false;  // batches in page-locked memory: a GPU reads them while the CPU goes on
  // The rows of the global batch that are made, as many as from `first` on; 0: all of them. Of the rest only
  // the images are read that mixup or cutmix mixes into these.
  std::int64_t first = 0, count = 0;
};

// Images and targets on `device`; from pinned memory the copy runs beside what the host does next. A batch
// that is there already comes back as it is.
Batch to_device(Batch batch, c10::Device device);

// Rows of the global batch of step `step` (from 0); a pure function. Draws the whole epoch's permutation: for
// many steps, a Loader. Throws as steps_per_epoch.
Batch make_batch(const Dataset& train, const LoaderConfig& config, std::int64_t step);

class Loader {
 public:
  // Starts config.data.workers threads that make the batches from first_step on, before `end_step`, at most
  // config.data.workers + 2 ahead. Throws as steps_per_epoch.
  Loader(std::shared_ptr<const Dataset> train, LoaderConfig config, std::int64_t first_step,
         std::int64_t end_step);
  ~Loader();  // waits for the batches under way, makes no more
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;
  // In order; rethrows what a thread threw making that batch, again on every further call. Throws
  // std::out_of_range past end_step. One caller at a time.
  Batch next();
  double wait_seconds() const;  // how long the last next() waited

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Images first .. first+count-1 of a split without augmentation, targets one-hot; `samples` are these
// indices, step and epoch are 0. Throws std::out_of_range.
Batch evaluation_batch(const Dataset& split, const DataConfig& config, std::int64_t classes,
                       std::int64_t first, std::int64_t count);

}  // namespace exfusion
