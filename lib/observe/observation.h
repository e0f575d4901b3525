// What the analyses of a run write: columns of numbers for each layer.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "models/model.h"
#include "observe/analysis_config.h"
#include "observe/block_share.h"
#include "observe/fused_sets.h"
#include "observe/held_out.h"

namespace exfusion {

struct ObservedColumn {
  std::string name;
  std::vector<std::int64_t> shape;  // {}: one number
  std::vector<double> values;       // as many as the shape says; NaN where undefined
  bool headline = false;            // one number worth a curve
};
struct ObservedGroup {
  std::string path;  // "fused/layer_000"
  std::vector<ObservedColumn> columns;
  std::int64_t block = kWholeModel;  // whose FFN it is about
};

ObservedColumn headline(std::string name, double value);
ObservedColumn number(std::string name, double value);
ObservedColumn numbers(std::string name, std::vector<std::int64_t> shape, std::vector<double> values);
std::string layer_path(const std::string& group, std::int64_t block);  // "fused", 0 -> "fused/layer_000"

// What the recipe asks for, of a model and its fused sets (none: a dense or sparse one), on `batches` of
// which there will be `size.batches` at most. Given none at all, the same groups and shapes with NaN: what
// files need to know beforehand. Of blocks that are not in `share` the same: other ranks see these.
// Deterministic; training goes on as if nothing had been.
struct ObservationSize {
  std::int64_t batches = 0, classes = 0;
};
std::vector<ObservedGroup> observe_model(Model& model, const std::vector<FusedSet>& sets,
                                         const std::vector<HeldOutBatch>& batches,
                                         const AnalysisConfig& config, const ObservationSize& size,
                                         const BlockShare& share = {});

}  // namespace exfusion
