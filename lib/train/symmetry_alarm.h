// Experts that act through one sum alone can stay what they were at the start, N random offsets around a
// dense model, however alike or different they look (docs/theory.md). Who trains such a run should know.
#pragma once
#include <cstdint>
#include <string>

#include "fusion/expert_statistics.h"
#include "fusion/fusion_config.h"
#include "train/training_state.h"

namespace exfusion {

// Whether the recipe alone makes the weights constant: then the experts' differences are known to be frozen.
bool constant_weights(const FusionConfig& config);

// Whether the differences D of a set's experts are those of the start but for weight decay: cos(D, D at the
// start) within 1e-4 of 1, and norm(D) within 1e-3 of `decay` times that at the start.
bool frozen(const ExpertGeometry& geometry, double decay);

// One line with both figures about the banks that are frozen now; "" if none is. Every rank calls it where
// experts are sharded.
std::string frozen_text(const TrainingState& state);

}  // namespace exfusion
