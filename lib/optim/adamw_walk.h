// The AdamW kernel's work on a pack of elements, for any device.
#pragma once
#include "core/grid_walk.h"
#include "optim/adamw_element.h"

namespace exfusion {

struct AdamWWalk {
  float *w, *m, *v;
  const float* g;
  float scale;
  AdamWScalars<float> scalars;

  bool fits() const { return fits_vectors(w) && fits_vectors(m) && fits_vectors(v) && fits_vectors(g); }

  template <int width>
  EXFUSION_HOST_DEVICE void at(std::int64_t i) const {
    const auto gradients = load<width>(g + i);
    auto weights = load<width>(w + i), first = load<width>(m + i), second = load<width>(v + i);
    for (int j = 0; j < width; ++j)
      adamw_element(weights.at[j], first.at[j], second.at[j], scale * gradients.at[j], scalars);
    store<width>(w + i, weights);
    store<width>(m + i, first);
    store<width>(v + i, second);
  }
};

}  // namespace exfusion
