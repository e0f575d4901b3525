#include "nn/init.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>

namespace exfusion {
namespace {

// Part of the meaning of a seed: values before and after a change of this number differ.
constexpr std::int64_t kBlock = 1 << 14;

template <class Next>
void fill(const at::Tensor& tensor, const InitialDraw& draw, const Next& next) {
  TORCH_CHECK(tensor.is_contiguous() && tensor.scalar_type() == at::kFloat,
              "contiguous fp32 tensor expected");
  auto* const values = tensor.data_ptr<float>();
  const auto size = tensor.numel(), blocks = (size + kBlock - 1) / kBlock;
  at::parallel_for(0, blocks, 1, [&](std::int64_t first, std::int64_t last) {
    for (auto block = first; block < last; ++block) {
      CounterRandom random(draw.seed, draw.what, static_cast<std::uint32_t>(draw.epoch),
                           static_cast<std::uint32_t>(draw.sample), static_cast<std::uint32_t>(block));
      const auto end = std::min(size, (block + 1) * kBlock);
      for (auto i = block * kBlock; i < end; ++i) values[i] = static_cast<float>(next(random));
    }
  });
}

}  // namespace

void fill_normal(const at::Tensor& tensor, double std, const InitialDraw& draw) {
  fill(tensor, draw, [std](CounterRandom& random) { return std * random.normal(); });
}

void fill_uniform(const at::Tensor& tensor, double bound, const InitialDraw& draw) {
  fill(tensor, draw, [bound](CounterRandom& random) { return random.uniform(-bound, bound); });
}

}  // namespace exfusion
