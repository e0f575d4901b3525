#include "train/evaluation.h"

#include <gtest/gtest.h>

#include "data/loader.h"
#include "tiny_run.h"

namespace exfusion {
namespace {

// Counts how often each image is looked at.
class CountingDataset : public Dataset {
 public:
  explicit CountingDataset(std::shared_ptr<const Dataset> whole)
      : seen(static_cast<std::size_t>(whole->size())), whole_(std::move(whole)) {
    channels = whole_->channels, height = whole_->height, width = whole_->width;
  }
  std::int64_t size() const override { return whole_->size(); }
  std::span<const std::uint8_t> image(std::int64_t index) const override {
    ++seen[static_cast<std::size_t>(index)];
    return whole_->image(index);
  }
  std::int64_t label(std::int64_t index) const override { return whole_->label(index); }
  mutable std::vector<int> seen;

 private:
  std::shared_ptr<const Dataset> whole_;
};

TEST(Evaluate, CountsEveryImageOnceWhateverTheSizeOfTheSplit) {
  for (const int images : {1, 249, 250, 251, 613}) {
    TinyRun run(
        {"data.test_samples=" + std::to_string(images), "data.augment={flip: 0.5, erase: 1, mixup: 1}"});
    run.steps(3);
    const CountingDataset test(run.data.test);
    at::Tensor logits;
    const Evaluation found = evaluate(*run.state.model, test, run.config.data, 4, "fp32", &logits);
    EXPECT_EQ(test.seen, std::vector<int>(static_cast<std::size_t>(images), 1));
    EXPECT_EQ(found.samples, images);

    const at::NoGradGuard no_grad;
    double loss = 0.0;
    int correct = 0;
    for (int i = 0; i < images; ++i) {  // one by one
      const Batch one = evaluation_batch(*run.data.test, run.config.data, 4, i, 1);
      const at::Tensor expected = run.state.model->forward(one.images, {})[0];
      EXPECT_LE(largest_difference(logits[i], expected), 1e-5);
      const std::int64_t label = test.label(i);
      loss -= at::log_softmax(expected.to(at::kDouble), 0)[label].item<double>();
      correct += expected.argmax().item<std::int64_t>() == label ? 1 : 0;
    }
    EXPECT_NEAR(found.loss, loss / images, 1e-5);
    EXPECT_DOUBLE_EQ(found.accuracy, static_cast<double>(correct) / images);
    EXPECT_EQ(logits.sizes(), (at::IntArrayRef{images, 4}));
  }
}

TEST(Evaluate, ChangesNothingAndRepeatsItsBits) {
  TinyRun run(kLearned);
  run.steps(2);
  const auto before = snapshot(run.state);
  const Evaluation first = evaluate(*run.state.model, *run.data.test, run.config.data, 4, "fp32");
  const Evaluation second = evaluate(*run.state.model, *run.data.test, run.config.data, 4, "fp32");
  EXPECT_EQ(first.loss, second.loss);
  EXPECT_EQ(first.accuracy, second.accuracy);
  expect_equal_bits(snapshot(run.state), before);
}

TEST(Evaluate, Bf16IsCloseToFp32) {
  TinyRun run;
  run.steps(3);
  at::Tensor half, full;
  evaluate(*run.state.model, *run.data.test, run.config.data, 4, "bf16", &half);
  evaluate(*run.state.model, *run.data.test, run.config.data, 4, "fp32", &full);
  EXPECT_EQ(half.scalar_type(), at::kFloat);
  EXPECT_FALSE(at::equal(half, full));
  EXPECT_LE(largest_difference(half, full), 0.05 * full.abs().max().item<double>());
}

}  // namespace
}  // namespace exfusion
