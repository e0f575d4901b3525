// What the loss would choose, other choices than the experts', and how alike experts are, as fields of the
// JSON (docs/metrics.md).
#pragma once
#include <functional>
#include <nlohmann/json.hpp>
#include <vector>

#include "observe/knock_out.h"
#include "observe/topk_virtual_scores.h"

namespace exfusion {

// Adds `virtual` to the layers with top-k experts.
void put_virtual_scores(const std::vector<TopkVirtualScores>& found, nlohmann::ordered_json& layers);

// Measures and adds what stands beside knock-outs in the group causal: `random_route` and `oracle_route`
// (top-k), `curvature` and `barrier` (fused sets), `similarity` (both). `held_out`: of these batches.
void put_expert_measures(Model& model, const std::vector<FusedSet>& sets,
                         const std::vector<HeldOutBatch>& batches, const analysis::HeldOutImages& held_out,
                         std::int64_t classes, nlohmann::ordered_json& layers,
                         const std::function<void(double)>& progress);

}  // namespace exfusion
