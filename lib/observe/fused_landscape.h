// The loss around a fused FFN: how prices move with the weights a, and what lies between two experts. Our own
// measures (docs/metrics.md).
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "observe/fused_sets.h"
#include "observe/held_out.h"

namespace exfusion {

class Model;

// tr(P Gamma P) / (N - 1), P = I - 11'/N, of Gamma [N, N]: 0 for experts that are alike. NaN for N = 1.
double price_slope(std::span<const double> gamma, std::size_t experts);

// Of one set. Gamma_kj = dc_k/da_j = <W_k, H W_j>, the slope of expert k's price in the share of expert j.
struct PriceCurvature {
  std::int64_t block = 0;
  std::vector<double> gamma;      // [N, N], mean of the halves of the images
  double asymmetry = 0.0;         // largest |Gamma_kj - Gamma_jk| over the largest |Gamma_kj|
  double slope = 0.0;             // price_slope of gamma
  std::vector<double> of_halves;  // [2]: price_slope by half
  std::vector<double>
      random;  // [kRandomCurvatures]: the same with random directions of the size of W_k - mean W
};
inline constexpr std::int64_t kCurvatureImages = 32;  // in each half: of the first two batches
inline constexpr std::uint32_t kRandomCurvatures = 3;

// From central differences of gradients, in double precision: 2 N (1 + kRandomCurvatures) gradients for each
// half. Sets that are not whole, and batches fewer than two, are left out. The model's parameters are what
// they were afterwards.
std::vector<PriceCurvature> price_curvatures(Model& model, const std::vector<FusedSet>& sets,
                                             const std::vector<HeldOutBatch>& batches,
                                             const std::function<void(double)>& progress = {});

// Of one set: the largest over lambda = 1/4, 1/2, 3/4 of the loss at lambda W_i + (1 - lambda) W_j less the
// line between its ends, or 0 if none lies above.
struct LossBarriers {
  std::int64_t block = 0;
  double images = 0.0;
  std::vector<std::pair<std::int64_t, std::int64_t>> pairs;  // of expert_pairs.h
  std::vector<double> barrier;                               // [pairs], nats
  std::vector<double> random;  // [pairs]: between W and random directions of the experts' sizes
};
inline constexpr std::size_t kBarrierBatches = 4;  // the first

std::vector<LossBarriers> loss_barriers(Model& model, const std::vector<FusedSet>& sets,
                                        const std::vector<HeldOutBatch>& batches, std::int64_t classes,
                                        const std::function<void(double)>& progress = {});

}  // namespace exfusion
