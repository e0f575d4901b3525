// What training costs, for comparisons at equal compute: counted, not measured.
#pragma once
#include <string>

#include "train/run_config.h"
#include "train/step.h"

namespace exfusion {

struct TrainingCost {
  // FLOPs of one training sample: three times the forward pass's matrix products, and what fusion adds (its
  // sums, inner products and router). Point-wise work and the optimizer are not counted, for nobody.
  double flops_per_sample = 0.0;
  double parameters_training = 0.0;  // numbers that training updates: experts, weights a or router among them
  double parameters_deployed = 0.0;  // of the exported model
  double state_bytes = 0.0;   // fp32 weights, gradients, moments, averages, what fusion keeps, under bf16 the
                              // weights' copy; no activations
  double fusion_bytes = 0.0;  // of these: what weights and router keep between steps
};

TrainingCost training_cost(const RunConfig& config, const TrainingState& state);

// One line: FLOPs, parameters, bytes that decide the experts' weights (train/memory.h has the others).
std::string cost_text(const TrainingCost& cost);

// The largest resident size of this process so far, in bytes.
double peak_memory();

}  // namespace exfusion
