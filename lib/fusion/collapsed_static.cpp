#include "fusion/collapsed_static.h"

#include <ATen/ATen.h>

#include <vector>

#include "fusion/expert_init.h"
#include "nn/ffn.h"

namespace exfusion {
namespace {

// The experts' initial values, [N, …].
FfnTensors initial_experts(const FusionConfig& config, const FfnTensors& dense, std::uint64_t seed,
                           std::int64_t ffn) {
  const std::vector<float> a(static_cast<std::size_t>(config.experts),
                             1.0f / static_cast<float>(config.experts));
  std::array<std::vector<at::Tensor>, 4> parts;
  for (std::int64_t k = 0; k < config.experts; ++k) {
    const FfnTensors expert = initial_expert(config, dense, seed, ffn, k, a);
    for (std::size_t t = 0; t < 4; ++t) parts[t].push_back(expert[t]);
  }
  FfnTensors experts;
  for (std::size_t t = 0; t < 4; ++t) experts[t] = at::stack(parts[t]);
  return experts;
}

// sum_k W_k / N in the order of k and in fp32, as fuse_experts adds.
at::Tensor mean_of(const at::Tensor& experts) {
  const float a = 1.0f / static_cast<float>(experts.size(0));
  at::Tensor sum = at::zeros_like(experts[0]);
  for (std::int64_t k = 0; k < experts.size(0); ++k) sum.add_(experts[k] * a);
  return sum;
}

}  // namespace

void start_at_mean(const FusionConfig& config, const FfnTensors& dense, std::uint64_t seed,
                   std::int64_t ffn) {
  const at::NoGradGuard no_grad;
  FfnTensors on_host = dense;  // where experts are drawn
  for (at::Tensor& tensor : on_host) tensor = tensor.detach().cpu();
  const FfnTensors experts = initial_experts(config, on_host, seed, ffn);
  for (std::size_t t = 0; t < 4; ++t) dense[t].detach().copy_(mean_of(experts[t]));
}

FfnTensors recovered_experts(const FusionConfig& config, const FfnTensors& trained, std::uint64_t seed,
                             std::int64_t ffn, double decay_product) {
  const at::NoGradGuard no_grad;
  const FfnTensors dense = initial_ffn(trained[0].size(1), trained[0].size(0), seed, ffn, 0);
  FfnTensors experts = initial_experts(config, dense, seed, ffn);
  for (std::size_t t = 0; t < 4; ++t) {
    const at::Tensor start = experts[t].to(at::kDouble);
    const double kept = t % 2 == 0 ? decay_product : 1.0;
    experts[t] = (trained[t].detach().to(at::kDouble) + kept * (start - start.mean(0))).to(at::kFloat);
  }
  return experts;
}

}  // namespace exfusion
