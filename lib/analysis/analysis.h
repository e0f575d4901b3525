// The analysis of a routing trace, layer by layer and for the whole model.
#pragma once
#include <vector>

#include "analysis/held_out.h"
#include "analysis/imbalance.h"
#include "analysis/layer_congestion.h"
#include "analysis/multi_type.h"
#include "analysis/scores.h"
#include "analysis/specialisation.h"
#include "analysis/trace.h"

namespace exfusion::analysis {

struct LayerAnalysis {
  std::int64_t layer = 0;
  LayerCongestion congestion;
  HeldOutL1 held_out;
  MultiTypeTable multi_type;
  Imbalance load;
  Quantity cv_floor;  // what tokens alone make of the coefficient of variation
  std::size_t dead = 0;
  Specialisation specialisation;
  std::vector<Score> scores;
};

// Means over the layers in which the number is defined; intervals from batches resampled jointly for all
// layers.
struct ModelAnalysis {
  Quantity gamma_eff, gamma_iv, temperature, gamma_null, gamma_excess, gamma_probe;
  Interval gamma_ci, gamma_excess_ci;
};

struct TraceAnalysis {
  std::vector<LayerAnalysis> layers;
  ModelAnalysis model;
};
TraceAnalysis analyse_trace(const Trace& trace);

}  // namespace exfusion::analysis
