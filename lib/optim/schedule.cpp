#include "optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/recipe.h"

namespace exfusion {
namespace {

struct Shape {
  const char* name;
  double (*factor)(const ScheduleConfig& config, double progress);
};

// Between the final factor (at 0) and 1.
double toward_final(const ScheduleConfig& config, double part) {
  return config.final + (1.0 - config.final) * part;
}

double cosine(const ScheduleConfig& config, double progress) {
  return toward_final(config, 0.5 * (1.0 + std::cos(std::numbers::pi * progress)));
}
double linear(const ScheduleConfig& config, double progress) {
  return toward_final(config, 1.0 - progress);
}
double constant(const ScheduleConfig&, double) {
  return 1.0;
}
double wsd(const ScheduleConfig& config, double progress) {
  const double left = 1.0 - progress;
  return left >= config.decay_fraction ? 1.0 : toward_final(config, left / config.decay_fraction);
}

constexpr Shape kShapes[] = {{"cosine", cosine}, {"linear", linear}, {"constant", constant}, {"wsd", wsd}};

}  // namespace

std::vector<std::string> schedule_names() {
  std::vector<std::string> names;
  for (const Shape& shape : kShapes) names.emplace_back(shape.name);
  return names;
}

ScheduleConfig ScheduleConfig::parse(Section section) {
  ScheduleConfig config;
  config.name = section.one_of("name", config.name, schedule_names());
  if (section.has("warmup_steps")) {
    config.warmup_steps = section.in_range<std::int64_t>("warmup_steps", 0, 0, 1'000'000'000'000);
    section.without_effect("warmup_epochs", "give either warmup_epochs or warmup_steps, not both");
  } else {
    config.warmup_epochs = section.in_range("warmup_epochs", config.warmup_epochs, 0.0, 1e6);
  }
  if (config.name == "constant") {
    section.without_effect("final",
                           "final has no effect on a constant schedule (cosine, linear and wsd end at it)");
  } else {
    config.final = section.in_range("final", config.final, 0.0, 1.0);
  }
  if (config.name == "wsd") {
    config.decay_fraction = section.in_range("decay_fraction", config.decay_fraction, 0.0, 1.0);
  } else {
    section.without_effect("decay_fraction",
                           "decay_fraction belongs to the schedule wsd; this one is " + config.name);
  }
  return config;
}

double schedule_factor(const ScheduleConfig& config, std::int64_t step, std::int64_t total,
                       std::int64_t steps_per_epoch) {
  const std::int64_t warmup = config.warmup_steps >= 0
                                  ? config.warmup_steps
                                  : static_cast<std::int64_t>(std::llround(
                                        config.warmup_epochs * static_cast<double>(steps_per_epoch)));
  if (step < warmup) return static_cast<double>(step + 1) / (static_cast<double>(warmup) + 1.0);
  const double progress =
      static_cast<double>(step - warmup) / static_cast<double>(std::max<std::int64_t>(total - warmup, 1));
  const auto* shape = std::ranges::find(kShapes, config.name, &Shape::name);
  return shape->factor(config, std::min(progress, 1.0));
}

}  // namespace exfusion
