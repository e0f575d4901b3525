// The recipe's `fusion` section.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "optim/schedule.h"

namespace exfusion {

class Section;

inline constexpr std::int64_t kMaxExperts = 64;

struct FusionConfig {
  std::int64_t experts = 4;
  std::string weights = "learned";  // static (a = 1/N), learned (one scalar per expert and FFN)
  std::string normalize =
      "softmax";  // learned: a = softmax(z / temperature), or none: a = z, starting at 1/N
  double temperature = 1.0;
  std::string init =
      "independent";    // independent, independent_scaled (keeps the fused std), copy, copy_noise
  double noise = 0.01;  // copy_noise: relative to the std of the tensor (biases: of the same layer's weight)
  std::vector<std::string> layers = {"all"};  // all, last:k, or a list of block numbers
  std::optional<double> lr;                   // of z; default: the learning rate of the model
  double weight_decay = 0.0;                  // of z (decoupled)
  std::optional<ScheduleConfig> schedule;     // of z; default: the model's
  // Throws nothing: problems (also copies that could never separate, method.md 3.2) go to the recipe.
  static FusionConfig parse(Section section);
};

std::vector<std::string> weight_mode_names();  // for --list

// Which of `count` FFNs are fused. Throws RecipeError when a number is out of range.
std::vector<bool> fused_layers(const FusionConfig& config, std::int64_t count);

}  // namespace exfusion
