// The one-pass update: AdamW on N experts and the next fused weights in one walk over memory. No torch here.
#pragma once
#include <cstdint>
#include <span>

#include "optim/adamw_element.h"

namespace exfusion {

// One tensor of an FFN with its N experts.
template <class T>
struct ExpertTensors {
  std::int64_t size = 0;        // elements of one expert
  T* fused = nullptr;           // [size] W, written
  const T* gradient = nullptr;  // [size] G = dL/dW
  std::span<T* const> w;        // N pointers: the experts
  std::span<T*const> m, v;  // N pointers each, their moments; or one each, the moments of G, shared by all
  // [size] W rounded to bf16 (core/bfloat16.h), written while it is in the cache; null: none is kept
  std::uint16_t* bf16 = nullptr;
};

// One element of the walk: expert k's gradient is a[k] * (scale * g); returns the fused weight with a_next,
// summed in the order of k.
template <class T>
EXFUSION_HOST_DEVICE inline T fused_element(std::int64_t i, int experts, T g, T scale, T* const* w,
                                            T* const* m, T* const* v, const T* a, const T* a_next,
                                            const AdamWScalars<T>& scalars) {
  const T scaled = scale * g;
  T sum = T(0);
  for (int k = 0; k < experts; ++k) {
    adamw_element(w[k][i], m[k][i], v[k][i], a[k] * scaled, scalars);
    sum += a_next[k] * w[k][i];
  }
  return sum;
}

// The same where the experts share m and v, the moments of scale * g.
template <class T>
EXFUSION_HOST_DEVICE inline T fused_shared_element(std::int64_t i, int experts, T g, T scale, T* const* w,
                                                   T* m, T* v, const T* a, const T* a_next,
                                                   const AdamWScalars<T>& scalars) {
  const T root = moments_element(m[i], v[i], scale * g, scalars);
  T sum = T(0);
  for (int k = 0; k < experts; ++k) {
    shared_moments_element(w[k][i], a[k], m[i], root, scalars);
    sum += a_next[k] * w[k][i];
  }
  return sum;
}

// Experts and fused weights of one tensor; moments are shared if there are fewer of them than experts. T:
// float, double. The same bits for any thread count and instruction set. `products` [N], if given, receives
// <G, W_k> of the experts before the update, with the bits of inner_products (optim/reduction.h); they cost
// no memory traffic here.
template <class T>
void fused_update(const ExpertTensors<T>& tensors, std::span<const T> a, std::span<const T> a_next, T scale,
                  const AdamWScalars<T>& scalars, std::span<double> products = {});

// fused = sum_k a[k] w[k], in the same order.
template <class T>
void fuse_experts(const ExpertTensors<T>& tensors, std::span<const T> a);

}  // namespace exfusion
