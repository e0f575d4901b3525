#include "observe/virtual_scores.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "analysis/draws.h"
#include "nn/matmul.h"

namespace exfusion {
namespace {

// [N] norms over all four tensors, in the tensors' own precision.
at::Tensor sizes_of(const FfnTensors& directions) {
  at::Tensor squares = at::zeros({directions[0].size(0)}, directions[0].options());
  for (const at::Tensor& tensor : directions) squares += tensor.flatten(1).norm(2, 1).square();
  return squares.sqrt();
}

}  // namespace

at::Tensor direction_scores(const FfnTokens& tokens, const FfnTensors& directions) {
  const at::NoGradGuard no_grad;
  const std::int64_t n = directions[0].size(0), hidden = directions[0].size(1), dim = directions[0].size(2);
  // One product for all experts, so that what is multiplied on is [tokens, N, dim] and never [.., hidden].
  const at::Tensor first = directions[0].permute({1, 0, 2}).reshape({hidden, n * dim});
  const at::Tensor inner = linear_input_gradient(tokens.delta1, first).view({-1, n, dim}),
                   outer = linear_product(tokens.activated, directions[2].reshape({n * dim, hidden}), {})
                               .view({-1, n, dim});
  const at::Tensor products = inner * tokens.x.unsqueeze(1) + outer * tokens.delta2.unsqueeze(1);
  return -(products.sum(2) + at::mm(tokens.delta1, directions[1].t()) +
           at::mm(tokens.delta2, directions[3].t()));
}

FfnTensors random_directions(const FfnTensors& offsets, std::span<const double> a, std::uint32_t repetition,
                             std::int64_t block) {
  CounterRandom random =
      analysis::draw(analysis::Purpose::random_direction, repetition, static_cast<std::uint32_t>(block));
  const at::Tensor weights = at::tensor(a, at::kDouble).to(offsets[0].scalar_type());
  FfnTensors directions;
  for (std::size_t t = 0; t < offsets.size(); ++t) {
    at::Tensor signs = random_signs(offsets[t].sizes(), random);
    const std::int64_t size = offsets[t].numel() / offsets[t].size(0);
    const at::Tensor scale = offsets[t].flatten(1).norm(2, 1) / std::sqrt(static_cast<double>(size));
    signs = signs.to(offsets[t].scalar_type()).flatten(1).mul_(scale.unsqueeze(1));
    directions[t] = signs.sub_(at::mv(signs.t(), weights)).view(offsets[t].sizes());
  }
  return directions;
}

HeldOutPrices::HeldOutPrices(std::int64_t batches, std::int64_t experts)
    : sum(static_cast<std::size_t>(batches * experts), 0.0),
      images(static_cast<std::size_t>(batches), 0.0),
      price(static_cast<std::size_t>(experts), std::nan("")),
      price_error(price),
      saliency(price) {}

VirtualScoreSums::VirtualScoreSums(const FusedSet& set, std::int64_t batches, std::int64_t classes)
    : set_(set),
      offsets_(set.whole() ? offsets(set) : FfnTensors{}),
      prices_(batches, set.size()),
      sums_(batches, set.size(), classes, set.block),
      batches_(batches) {}

TokenScores VirtualScoreSums::scores(const FfnTokens& tokens, const FfnTensors& directions) const {
  return with_sizes(direction_scores(tokens, directions), sizes_of(directions));
}

void VirtualScoreSums::add(const FfnTokens& tokens) {
  const TokenScores found = scores(tokens, offsets_);
  const auto batch = static_cast<std::size_t>(sums_.added()), n = set_.a.size();
  // W_k = W + D_k.
  const at::Tensor price =
      tokens.growth.sum(at::kDouble) - found.scores.sum(0, /*keepdim=*/false, at::kDouble);
  for (std::size_t k = 0; k < n; ++k)
    prices_.sum[batch * n + k] = price[static_cast<std::int64_t>(k)].item<double>();
  if (tokens.size() > 0) prices_.images[batch] = tokens.image.max().item<double>() + 1.0;
  sums_.add(found, tokens.image, tokens.label);
  const std::int64_t stride = std::max<std::int64_t>(1, (tokens.size() * batches_ - 1) / kSampledTokens + 1);
  // Another start in each batch: a token's place in its image must not decide.
  sampled_.push_back(every_row(tokens, sums_.added() % stride, stride));
}

VirtualScores VirtualScoreSums::finish() const {
  VirtualScores found = sums_.finish();
  if (empty()) return found;
  const FfnTokens tokens = sample();
  std::vector<TokenScores> random(kRandomDirections);
  at::parallel_for(0, kRandomDirections, 1, [&](std::int64_t first, std::int64_t last) {
    for (auto r = static_cast<std::uint32_t>(first); r < static_cast<std::uint32_t>(last); ++r)
      random[r] = scores(tokens, random_directions(offsets_, set_.a, r, set_.block));
  });
  compare_with_random(scores(tokens, offsets_), random, tokens.label, found);
  return found;
}

HeldOutPrices VirtualScoreSums::prices() const {
  HeldOutPrices found = prices_;
  const std::size_t n = set_.a.size(), batches = static_cast<std::size_t>(sums_.added());
  double images = 0.0;
  for (const double one : found.images) images += one;
  std::vector<double> lambda(batches, 0.0);  // sum_j a_j c_j of each batch
  for (std::size_t i = 0; i < batches * n; ++i) lambda[i / n] += set_.a[i % n] * found.sum[i];
  for (std::size_t k = 0; k < n && images > 0.0; ++k) {
    double sum = 0.0, above = 0.0, squares = 0.0;
    for (std::size_t b = 0; b < batches; ++b) {
      sum += found.sum[b * n + k];
      above += found.sum[b * n + k] - lambda[b];
    }
    for (std::size_t b = 0; b < batches; ++b) {
      const double off = found.sum[b * n + k] - lambda[b] - above / images * found.images[b];
      squares += off * off;
    }
    const auto count = static_cast<double>(batches);
    found.price[k] = sum / images;
    found.price_error[k] = std::sqrt(squares * count / (count - 1.0)) / images;  // one batch: NaN
    found.saliency[k] = -set_.a[k] * found.price[k];
  }
  return found;
}

}  // namespace exfusion
