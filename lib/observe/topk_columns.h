// The columns of the groups load, congestion, scores (top-k layers) and lens (these and fused sets).
#pragma once
#include <vector>

#include "observe/lens.h"
#include "observe/observation.h"
#include "observe/topk_trace.h"

namespace exfusion {

// What they come from; empty where the recipe does not ask for it.
struct RoutingSeen {
  TopkObservation routing;
  std::vector<LensLayer> lens;
  GateSweep gates;
};

// As observe_model, for these groups; of layers of which nothing was seen their shapes, with NaN. Estimates
// without intervals: resampling is exfusion-analyze's.
std::vector<ObservedGroup> topk_columns(const Model& model, const std::vector<FusedSet>& sets,
                                        const RoutingSeen& found, const AnalysisConfig& config,
                                        const ObservationSize& size);

}  // namespace exfusion
