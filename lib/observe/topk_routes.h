// What other choices of experts would do to the loss: random ones, and those that the first-order scores of
// topk_virtual_scores.h would make, which know the label. Our own measures (docs/metrics.md).
#pragma once
#include <functional>
#include <vector>

#include "analysis/causal.h"
#include "observe/held_out.h"

namespace exfusion {

class Model;

// Of one top-k layer, with the intervention less without. The gates are the token's own, its largest for the
// first of the experts, so that the choice alone differs.
struct RouteChanges {
  std::int64_t block = 0;
  analysis::ImageSums random;  // every token takes K experts at random
  analysis::ImageSums oracle;  // every token takes the K with the highest s_k(t), the highest first
};

// `held_out`: of these batches. `progress` gets the part that is done, and may throw.
std::vector<RouteChanges> change_routes(Model& model, const std::vector<HeldOutBatch>& batches,
                                        const analysis::HeldOutImages& held_out,
                                        const std::function<void(double)>& progress = {});

}  // namespace exfusion
