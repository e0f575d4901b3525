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
  std::string weights = "learned";    // static (a = 1/N), learned (one scalar per expert and FFN), memory
  std::string normalize = "softmax";  // learned: a = softmax(z / temperature), or none: a = z, from 1/N on
  double temperature = 1.0;           // of the softmax: of z (learned), of the router (memory)
  std::string forward = "memory";     // memory: a of step t is m_{t-1} (memory), m_t (blend), r_t (routed)
  double momentum = 0.99;             // of the memory m
  double router_std = 0.02;           // of the router's initial normal draw
  double balance = 0.0;               // coefficient of -H(m), a penalty on a one-sided memory
  double expert_dropout = 0.0;        // fraction of steps with a random subset of experts
  double dirichlet = 0.0;             // concentration of Dirichlet noise on a; 0: off
  std::string init = "independent";   // how experts start: expert_init.h
  double noise = 0.01;                // copy_noise: relative to the std of the tensor's weight
  std::string from;                   // a dense model to start from; "": the recipe's own initial values
  double drop_ratio = 0.5;            // drop: part of the hidden units that is drawn anew
  bool permute = false;               // drop: permute each expert's hidden units
  bool materialize = true;            // static: false trains the one dense form that the experts amount to
  std::string state = "full";  // moments: of each expert (full), of the fused gradient (shared_moments)
  std::vector<std::string> layers = {"all"};  // nn/layer_selection.h; parse_run checks them
  std::optional<double> lr;                   // of z or the router; default: the model's
  double weight_decay = 0.0;                  // of z or the router (decoupled)
  std::optional<ScheduleConfig> schedule;     // of z or the router; default: the model's
  // Whether the weights of a step's forward pass depend on its own input: blend, routed.
  bool routes_in_step() const { return weights == "memory" && forward != "memory"; }
  bool shares_moments() const { return state == "shared_moments"; }
  // Throws nothing: problems (also copies that could never separate) go to the recipe.
  static FusionConfig parse(Section section);
};

std::vector<std::string> weight_mode_names();  // for --list

}  // namespace exfusion
