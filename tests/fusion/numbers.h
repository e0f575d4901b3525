// Numbers for the tests of the fused update.
#pragma once
#include <ATen/ATen.h>

#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "fusion/fused_update.h"

namespace exfusion {

inline at::Tensor normal_numbers(at::IntArrayRef shape, std::uint64_t seed,
                                 at::ScalarType type = at::kFloat) {
  std::mt19937_64 bits(seed);
  std::normal_distribution<double> normal;
  at::Tensor x = at::empty(shape, at::kDouble);
  for (std::int64_t i = 0; i < x.numel(); ++i) x.mutable_data_ptr<double>()[i] = normal(bits);
  return x.to(type);
}

// N experts of one tensor of `size` elements.
template <class T>
struct Experts {
  Experts(std::int64_t experts, std::int64_t elements, std::uint64_t seed, bool shares_moments = false)
      : size(elements),
        w(normal_numbers({experts, elements}, seed, c10::CppTypeToScalarType<T>::value)),
        m(at::zeros({shares_moments ? 1 : experts, elements}, w.options())),
        v(at::zeros_like(m)),
        fused(at::zeros({elements}, w.options())) {}

  static std::vector<T*> rows(at::Tensor& x) {
    std::vector<T*> pointers;
    for (std::int64_t k = 0; k < x.size(0); ++k)
      pointers.push_back(x.template mutable_data_ptr<T>() + k * x.size(1));
    return pointers;
  }
  void fuse(const std::vector<T>& a) {
    const std::vector<T*> pw = rows(w);
    fuse_experts<T>({size, fused.template mutable_data_ptr<T>(), nullptr, pw, {}, {}}, std::span<const T>(a));
  }
  void update(const at::Tensor& g, const std::vector<T>& a, const std::vector<T>& a_next, T scale,
              const AdamWScalars<T>& scalars) {
    const std::vector<T*> pw = rows(w), pm = rows(m), pv = rows(v);
    fused_update<T>({size, fused.template mutable_data_ptr<T>(), g.template const_data_ptr<T>(), pw, pm, pv},
                    std::span<const T>(a), std::span<const T>(a_next), scale, scalars);
  }

  std::int64_t size;
  at::Tensor w, m, v, fused;  // [N, size], m and v [1, size] where shared; [size]
};

}  // namespace exfusion
