// Interventions: one expert of one FFN is taken out, or stands alone, and the model runs on from there. Loss
// (cross entropy) and right answers of the same held-out images with and without.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "analysis/causal.h"
#include "observe/fused_sets.h"
#include "observe/held_out.h"

namespace exfusion {

class Model;

inline constexpr std::int64_t kRandomPerturbations = 20;

// Of one FFN with N experts. Changes are "with the intervention less without".
struct FfnKnockOut {
  std::int64_t block = 0;
  std::vector<analysis::ImageSums> left_out;  // [N]; empty sums where undefined
  std::vector<std::string> undefined;         // [N]: why an expert cannot be left out; "": it can
  // Fused experts only: W_k in the place of W = sum_k a_k W_k, as it is and with the norm of W (over all four
  // tensors), [N] each; and, as the null of leaving out, perturbations of W with the singular values of those
  // that leaving experts out makes (expert r mod N is the model of perturbation r) in random directions.
  std::vector<analysis::ImageSums> alone, alone_scaled, random;
};

struct KnockOuts {
  analysis::HeldOutImages held_out;
  std::vector<FfnKnockOut> ffns;  // in the order of the forward pass
  // Fused experts only: W_k in every FFN at once, [N].
  std::vector<analysis::ImageSums> alone_everywhere;
};

// Called now and then with the part that is done, 0 to 1; may throw to stop.
using KnockOutProgress = std::function<void(double)>;

// Top-k experts: the tokens that chose the expert choose as if its logit were -inf, the others keep their
// choice and gates (with renormalised gates that is what removing the expert does; plain probabilities of
// other tokens would rise a little). So an expert that no token chooses changes nothing, bit for bit.
KnockOuts knock_out_topk(Model& model, const std::vector<HeldOutBatch>& batches, std::int64_t classes,
                         const KnockOutProgress& progress = {});

// Fused experts: W without expert k is (W - a_k W_k) / (1 - a_k) = W + a_k / (1 - a_k) (W - W_k). Undefined
// where a_k is 1. Copies of one expert change nothing.
KnockOuts knock_out_fused(Model& model, const std::vector<FusedSet>& sets,
                          const std::vector<HeldOutBatch>& batches, std::int64_t classes,
                          const KnockOutProgress& progress = {});

}  // namespace exfusion
