// Controls: dense trainings that a gain of fusion has to beat, because each of them has one of the things
// that could explain it away. A control is applied to a fused recipe and takes its experts and layers from
// there.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "fusion/fusion_config.h"
#include "optim/adamw.h"
#include "optim/flat_parameters.h"

namespace exfusion {

class Model;
class Section;

struct ControlConfig {
  std::string name = "none";
  std::string from;                 // dense_lr_scaled: a finished run of the fused recipe
  std::int64_t experts = 1;         // of the fused recipe
  std::vector<std::string> layers;  // its fused blocks
};

std::vector<std::string> control_names();  // for --list

// Reads `control` and `control_from` and rewrites the other sections (an upcycled recipe's control starts
// from the same dense model):
//   dense              no experts
//   dense_init_scaled  no experts, weights of the FFNs that would be fused start at std / sqrt(N)
//   dense_lr_scaled    no experts; on each of these FFNs learning rate times s and weight decay over s, where
//                      s is its mean sum_k |a_k| in the run `control_from`
//   dense_lr2          no experts, all learning rates doubled
//   dense_gain         one expert per FFN with a learned factor on its weights (it starts at 1)
ControlConfig parse_control(Section& root, std::optional<FusionConfig>& fusion, AdamWConfig& optim);

// dense_init_scaled: the initial values of the model.
void scale_initial_values(const ControlConfig& control, const Model& model);

// dense_lr_scaled: the slots' learning rates. Without `read_run` they stay NaN until a checkpoint brings them
// (optim/adamw.h). Throws RecipeError if every s is 1 (the control is then identical to dense),
// CheckpointError if the run cannot be used.
void scale_learning_rates(const ControlConfig& control, const Model& model, bool read_run,
                          std::vector<ParameterSlot>& slots);

}  // namespace exfusion
