#include "train/progress.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "core/duration.h"
#include "core/log.h"

namespace exfusion {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

}  // namespace

Progress::Progress(std::int64_t first_step, std::int64_t total, std::int64_t steps_per_epoch,
                   std::int64_t global_batch, double step_flops, double peak_flops)
    : total_(total),
      steps_per_epoch_(steps_per_epoch),
      global_batch_(global_batch),
      step_flops_(step_flops),
      peak_flops_(peak_flops) {
  if (first_step > 0) log_info("{} of {} steps are done", first_step, total);
}

std::string Progress::text(std::int64_t step, double lr) const {
  const double rate = static_cast<double>(global_batch_) / mean_seconds_;
  return fmt::format("epoch {:.2f}  step {}/{}  loss {:.4f}  lr {:.2e}  {:.0f} samples/s  MFU {:.2f}  ETA {}",
                     static_cast<double>(step) / static_cast<double>(steps_per_epoch_), step, total_,
                     mean_loss_, lr, rate, step_flops_ / mean_seconds_ / peak_flops_,
                     clock_text(static_cast<double>(total_ - step) * mean_seconds_));
}

void Progress::update(std::int64_t step, const StepResult& result, double seconds) {
  ++seen_;
  const double weight = std::max(0.02, 1.0 / static_cast<double>(seen_));
  mean_seconds_ += weight * (seconds - mean_seconds_);
  if (std::isfinite(result.loss)) mean_loss_ += weight * (result.loss - mean_loss_);
  line_.show([&] { return text(step, result.lr); }, step == total_);
}

double measure_peak_flops(const std::string& precision) {
  const at::NoGradGuard no_grad;
  constexpr std::int64_t kSize = 1024;
  const at::Tensor square = at::ones({kSize, kSize}, precision == "bf16" ? at::kBFloat16 : at::kFloat);
  double best = 0.0;
  for (int round = 0; round < 5; ++round) {
    const Clock::time_point start = Clock::now();
    at::mm(square, square);
    best = std::max(best, 2.0 * kSize * kSize * kSize / Seconds(Clock::now() - start).count());
  }
  return best;
}

}  // namespace exfusion
