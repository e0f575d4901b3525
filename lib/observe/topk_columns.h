// The columns of the groups load, congestion, scores (top-k layers) and lens (these and fused sets).
#pragma once
#include <vector>

#include "observe/observation.h"

namespace exfusion {

// As observe_model, for these groups. Estimates without intervals: resampling is exfusion-analyze's.
std::vector<ObservedGroup> topk_columns(Model& model, const std::vector<FusedSet>& sets,
                                        const std::vector<HeldOutBatch>& batches,
                                        const AnalysisConfig& config, const ObservationSize& size);

}  // namespace exfusion
