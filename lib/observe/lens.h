// Can one expert stand in for the whole layer? (Chaudhari et al., "MoE Lens", arXiv 2603.05806: definitions
// second-hand; the nulls are this project's.) The single expert of a top-k layer is the chosen one with the
// largest gate, that of a fused set the one with the largest weight a; y is the layer's output, u the
// residual stream that it is added to, before any norm.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "observe/block_share.h"
#include "observe/fused_sets.h"
#include "observe/held_out.h"
#include "observe/model_pass.h"

namespace exfusion {

// Cosines of the single expert's output f with y, means over tokens: without the residual, and of u + f with
// u + y, which a large u brings near 1 whatever the experts do.
struct LensCosine {
  double plain = 0.0, residual = 0.0;
};

// Vectors of a layer on some tokens, double. A single expert comes first among the K.
struct LensTokens {
  at::Tensor single, ensemble, stream;  // [tokens, dim]: f, y, u
  at::Tensor norms, weights;            // [tokens, K]: of the experts' outputs, and what they enter y with
};
LensCosine lens_cosine(const LensTokens& tokens);

// What unrelated experts show: outputs orthogonal to each other and to a residual of norm r,
//   (r^2 + w_1 n_1^2) / (sqrt(r^2 + n_1^2) sqrt(r^2 + sum w_k^2 n_k^2))
double orthogonal_cosine(std::span<const double> weights, std::span<const double> norms, double residual);

struct LensLayer {
  std::int64_t block = 0;
  bool fused = false;
  double tokens = 0.0;
  LensCosine cosine;
  LensCosine unrelated;       // orthogonal_cosine at each token's norms and weights
  LensCosine shuffled;        // f of another token of the batch
  double output_ratio = 0.0;  // mean over tokens of norm(f) / norm(u)
  // The extended logit lens: the model's end on u + y and on u + f, with f on every token of the image.
  double divergence = 0.0;  // KL(p of u + y || p of u + f), nats, mean over images
  double agreement = 0.0;   // share of the images with the same first class
  // Per class: images, and the label's mean probability under each (NaN for a class without images).
  std::vector<double> images, label_ensemble, label_single;
};

// Adds the passes of batches up, in their order: of every block with a top-k FFN or one of these sets that is
// whole, if it is in `share`. Model and sets must outlive it.
class LensSeen {
 public:
  LensSeen(Model& model, const std::vector<FusedSet>& sets, std::int64_t classes,
           const BlockShare& share = {});
  void add(const ModelPass& pass, const HeldOutBatch& batch);
  bool empty() const { return layers_.empty(); }  // no such block
  std::vector<LensLayer> finish() const;

 private:
  Model& model_;
  const std::vector<FusedSet>& sets_;
  std::vector<LensLayer> layers_;
  std::uint32_t next_ = 0;
};
std::vector<LensLayer> observe_lens(Model& model, const std::vector<FusedSet>& sets,
                                    const std::vector<HeldOutBatch>& batches, std::int64_t classes);

// The model with only the k largest gates of each token in every top-k layer.
struct SweepPoint {
  std::int64_t experts = 0;  // k
  double loss = 0.0;         // nats per image; perplexity is its exp
  double accuracy = 0.0;
};
struct GateSweep {
  std::vector<SweepPoint> as_is;         // k = 1 .. K, gates as they are: the layers' outputs shrink too
  std::vector<SweepPoint> renormalised;  // gates scaled to the sum that they had
};
// 2 K - 2 forward passes over the batches, and one more unless `logits`, what the model says as it is [n,
// classes] for each batch, are given. Empty for a model without top-k blocks.
GateSweep observe_gate_sweep(Model& model, const std::vector<HeldOutBatch>& batches,
                             const std::vector<at::Tensor>& logits = {});

}  // namespace exfusion
