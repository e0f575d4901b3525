// The one-pass update's work on a pack of elements, for any device: what fused_element does, element by
// element.
#pragma once
#include <algorithm>

#include "core/grid_walk.h"
#include "fusion/fused_update.h"
#include "fusion/fusion_config.h"

namespace exfusion {

// The arrays of one tensor and its experts, by value: a kernel's arguments.
struct FusedWalk {
  FusedWalk(const ExpertTensors<float>& tensors, std::span<const float> weights, std::span<const float> next,
            float gradient_scale, const AdamWScalars<float>& step)
      : experts(static_cast<int>(weights.size())),
        fused(tensors.fused),
        gradient(tensors.gradient),
        scale(gradient_scale),
        scalars(step) {
    std::copy(tensors.w.begin(), tensors.w.end(), w);
    std::copy(tensors.m.begin(), tensors.m.end(), m);
    std::copy(tensors.v.begin(), tensors.v.end(), v);
    std::copy(weights.begin(), weights.end(), a);
    std::copy(next.begin(), next.end(), a_next);
  }

  bool fits() const {
    const auto all = [this](float* const* rows) { return std::all_of(rows, rows + experts, fits_vectors); };
    return fits_vectors(fused) && fits_vectors(gradient) && all(w) && all(m) && all(v);
  }

  template <int width>
  EXFUSION_HOST_DEVICE void at(std::int64_t i) const {
    auto g = load<width>(gradient + i);
    Pack<float, width> sum = {};
    for (int j = 0; j < width; ++j) g.at[j] = scale * g.at[j];
    for (int k = 0; k < experts; ++k) {
      auto weights = load<width>(w[k] + i), first = load<width>(m[k] + i), second = load<width>(v[k] + i);
      for (int j = 0; j < width; ++j) {
        adamw_element(weights.at[j], first.at[j], second.at[j], a[k] * g.at[j], scalars);
        sum.at[j] += a_next[k] * weights.at[j];
      }
      store<width>(w[k] + i, weights);
      store<width>(m[k] + i, first);
      store<width>(v[k] + i, second);
    }
    store<width>(fused + i, sum);
  }

  int experts;
  float* fused;
  const float* gradient;
  float *w[kMaxExperts], *m[kMaxExperts], *v[kMaxExperts];
  float a[kMaxExperts], a_next[kMaxExperts];
  float scale;
  AdamWScalars<float> scalars;
};

// fused = sum_k a[k] w[k], in the order of k.
struct FuseWalk {
  FuseWalk(const ExpertTensors<float>& tensors, std::span<const float> weights)
      : experts(static_cast<int>(weights.size())), fused(tensors.fused) {
    std::copy(tensors.w.begin(), tensors.w.end(), w);
    std::copy(weights.begin(), weights.end(), a);
  }

  bool fits() const { return fits_vectors(fused) && std::all_of(w, w + experts, fits_vectors); }

  template <int width>
  EXFUSION_HOST_DEVICE void at(std::int64_t i) const {
    Pack<float, width> sum = {};
    for (int k = 0; k < experts; ++k) {
      const auto weights = load<width>(w[k] + i);
      for (int j = 0; j < width; ++j) sum.at[j] += a[k] * weights.at[j];
    }
    store<width>(fused + i, sum);
  }

  int experts;
  float* fused;
  const float* w[kMaxExperts];
  float a[kMaxExperts];
};

}  // namespace exfusion
