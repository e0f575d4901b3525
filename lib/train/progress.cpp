#include "train/progress.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "core/duration.h"
#include "core/log.h"

namespace exfusion {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr double kRedrawSeconds = 0.1;
constexpr double kLogSeconds = 20.0;

bool on_terminal() {
  static const bool terminal = isatty(STDERR_FILENO) == 1;
  return terminal;
}

bool drawn_line = false;  // whether the terminal's last line is ours

}  // namespace

Progress::Progress(std::int64_t first_step, std::int64_t total, std::int64_t steps_per_epoch,
                   std::int64_t global_batch, double step_flops, double peak_flops)
    : total_(total),
      steps_per_epoch_(steps_per_epoch),
      global_batch_(global_batch),
      step_flops_(step_flops),
      peak_flops_(peak_flops),
      drawn_(Clock::now()),
      logged_(Clock::now()) {
  log_before_line(&Progress::clear);
  if (first_step > 0) log_info("{} of {} steps are done", first_step, total);
}

Progress::~Progress() {
  clear();
  log_before_line({});
}

void Progress::clear() {
  if (!drawn_line) return;
  std::fputs("\r\033[K", stderr);
  drawn_line = false;
}

std::string Progress::line(std::int64_t step, double lr) const {
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
  const Clock::time_point now = Clock::now();
  if (Seconds(now - logged_).count() >= kLogSeconds || step == total_) {
    log_line_info(line(step, result.lr));
    logged_ = now;
  } else if (on_terminal() && Seconds(now - drawn_).count() >= kRedrawSeconds) {
    std::fputs(("\r\033[K" + line(step, result.lr)).c_str(), stderr);
    std::fflush(stderr);
    drawn_line = true;
    drawn_ = now;
  }
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
