// Learning-rate schedules: plain arithmetic on the step number.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace exfusion {

class Section;

struct ScheduleConfig {
  std::string name = "cosine";     // cosine, linear, constant, wsd (warm-up, stable, decay)
  double warmup_epochs = 0.0;      // either this
  std::int64_t warmup_steps = -1;  // or this (-1: not given)
  double final = 0.0;              // the factor at the end of cosine, linear and wsd
  double decay_fraction = 0.2;     // wsd: the part of the steps that decays (linearly)
  static ScheduleConfig parse(Section section);
};

std::vector<std::string> schedule_names();  // for --list

// The factor on the learning rate in step `step` (from 0) of `total`. Warm-up rises linearly, (step + 1) /
// (warm-up + 1); then the schedule runs over the steps that remain with progress p = (step - warm-up) /
// (total - warm-up) in [0, 1], so that p = 1, where the factor is `final`, is the end of the last step:
//   cosine  final + (1 - final) (1 + cos(pi p)) / 2 (Loshchilov and Hutter 2017)    linear  final + (1 -
//   final) (1 - p) wsd     1 until p = 1 - decay_fraction, then linear to final (Hu et al. 2024)   constant 1
double schedule_factor(const ScheduleConfig& config, std::int64_t step, std::int64_t total,
                       std::int64_t steps_per_epoch);

}  // namespace exfusion
