// What can be compared: each arm is a name for a few `--set`s on one fused recipe. The table is in arms.cpp.
#pragma once
#include <string>
#include <vector>

namespace exfusion {

// Whose accuracy an arm is judged by.
enum class Scored {
  model,         // the trained model, collapsed to what is deployed
  moving,        // its exponential moving average of weights (train.ema)
  uniform_soup,  // the mean of its last kSoupCheckpoints checkpoints
};

inline constexpr int kSoupCheckpoints = 5;  // averaged by the arm `average`
inline constexpr int kSoupSpacing = 50;     // they are 1 / kSoupSpacing of the steps apart

struct Arm {
  std::string name;
  std::vector<std::string> sets;
  bool control = false;  // something a sceptic would try instead of fusion; dense is one
  std::string sentence;
  Scored scored = Scored::model;
  bool scaled_by_fused_run = false;  // needs control_from=RUN, a finished fused run of the same seed
};

const std::vector<Arm>& all_arms();  // for --help and the docs, in the order of a reader's questions

// The arms of "dense,static,…" in this order, dense put first, and said so, if it is missing. Throws
// UsageError: unknown (the nearest is named), named twice, or dense_lr_scaled without a fused arm beside it.
std::vector<Arm> parse_arms(const std::string& list);

// The arm whose finished runs give dense_lr_scaled its scale: learned_free if compared (elsewhere the weights
// sum to 1), else another fused arm; "" if none is among the arms.
std::string scale_source(const std::vector<Arm>& arms);

}  // namespace exfusion
