// A run that was trained to its end, for tests of what it leaves behind.
#pragma once
#include "core/log.h"
#include "tiny_run.h"
#include "train/loop.h"

namespace exfusion {

// Trains in `path`, which must not exist.
inline RunOutcome train_run(const TinyRun& run, const std::filesystem::path& path) {
  const RunFolder folder = RunFolder::create(path, false);
  return run_training(run.config, run.resolved, folder, false);
}

inline RunOutcome resume_run(const TinyRun& run, const std::filesystem::path& path) {
  const RunFolder folder = RunFolder::open(path);
  return run_training(run.config, run.resolved, folder, true);
}

// Fused, with a weight average, a checkpoint each of the 6 steps (none is pruned), the best after step 3.
inline std::vector<std::string> finished_run_sets() {
  return {kLearned[0], "train.ema=0.8", "train.eval_every_steps=3", "checkpoint={every_steps: 1, keep: 9}"};
}

class FinishedRun : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    log_set_quiet(true);
    root_ = new TestFolder;
    outcome_ = train_run(TinyRun(finished_run_sets()), *root_ / "run");
  }
  static void TearDownTestSuite() {
    delete root_;
    root_ = nullptr;
  }
  static std::filesystem::path run() { return *root_ / "run"; }
  static std::filesystem::path checkpoint(const std::string& name) { return run() / "checkpoints" / name; }
  static at::Tensor logits(Model& model) {
    const at::NoGradGuard no_grad;
    return model.forward(at::linspace(-1, 1, 3 * 64).view({3, 1, 8, 8}), {});
  }

  static inline TestFolder* root_ = nullptr;
  static inline RunOutcome outcome_;
};

}  // namespace exfusion
