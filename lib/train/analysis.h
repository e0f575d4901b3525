// What a run looks at beside its training, at the due steps of the recipe's `analysis` section.
#pragma once
#include <vector>

#include "observe/observation.h"
#include "train/run.h"

namespace exfusion {

// Every group that analyses will write, without values; for MetricsLog.
std::vector<ObservedGroup> analysis_groups(const Run& run);

// Looks at the current model on held-out images and writes the rows of this step. Every rank calls it: each
// looks at blocks of its own (observe/block_share.h). Changes nothing that training reads.
void analyse_step(Run& run, MetricsLog& metrics);

// The symmetry alarm: says at step 0 what the recipe alone decides, and warns once, at step 100 or a later
// checkpoint, when experts stay where they started. Every rank calls it.
void watch_symmetry(Run& run, bool checkpoint);

}  // namespace exfusion
