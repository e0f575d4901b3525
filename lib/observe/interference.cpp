#include "observe/interference.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

namespace exfusion {
namespace {

// |mean_c g_c|^2 and mean_c |g_c|^2 of class gradients [C, size], each square a product of two estimates.
struct Squares {
  double of_mean = 0.0, mean = 0.0;
  double kappa() const { return mean > 0.0 ? 1.0 - of_mean / mean : std::nan(""); }
};

Squares squares(const at::Tensor& x, const at::Tensor& y) {
  const at::Tensor mean_x = x.mean(0, false, at::kDouble), mean_y = y.mean(0, false, at::kDouble);
  return {(mean_x * mean_y).sum().item<double>(),
          (x * y).sum(at::kDouble).item<double>() / static_cast<double>(x.size(0))};
}

}  // namespace

Interference::Interference(std::int64_t classes, std::int64_t parts)
    : kappa(std::nan("")),
      kappa_biased(kappa),
      kappa_of_expert(static_cast<std::size_t>(parts), kappa),
      class_norm(static_cast<std::size_t>(classes), kappa) {}

double interference(const at::Tensor& half, const at::Tensor& other) {
  return squares(half, other).kappa();
}

ClassGradients::ClassGradients(std::int64_t classes, std::int64_t parts, std::int64_t dim,
                               std::int64_t hidden)
    : dim_(dim), hidden_(hidden) {
  for (std::size_t half : {0, 1}) {
    sums_[half] = at::zeros({parts, classes, 2 * dim * hidden + hidden + dim});
    images_[half] = at::zeros({classes}, at::kDouble);
  }
}

double ClassGradients::bytes(std::int64_t classes, std::int64_t parts, std::int64_t dim,
                             std::int64_t hidden) {
  return 8.0 * static_cast<double>(classes * parts) * static_cast<double>(2 * dim * hidden + hidden + dim);
}

void ClassGradients::add(const BlockTokens& tokens, const at::Tensor& labels) {
  const at::NoGradGuard no_grad;
  const std::size_t half = static_cast<std::size_t>(batches_++ % 2);
  const std::int64_t classes = images_[half].size(0), matrix = dim_ * hidden_;
  images_[half] += labels.bincount({}, classes);
  for (std::size_t part = 0; part < tokens.parts.size(); ++part) {
    const FfnTokens& all = tokens.parts[part];
    for (std::int64_t c = 0; c < classes; ++c) {
      const at::Tensor rows = (all.label == c).nonzero().select(1, 0);
      if (rows.numel() == 0) continue;
      const auto of_class = [&](const at::Tensor& x) { return x.index_select(0, rows); };
      const at::Tensor delta1 = of_class(all.delta1), delta2 = of_class(all.delta2);
      const at::Tensor sum = sums_[half][static_cast<std::int64_t>(part)][c];
      sum.narrow(0, 0, matrix).view({hidden_, dim_}).addmm_(delta1.t(), of_class(all.x));
      sum.narrow(0, matrix, matrix).view({dim_, hidden_}).addmm_(delta2.t(), of_class(all.activated));
      sum.narrow(0, 2 * matrix, hidden_).add_(delta1.sum(0));
      sum.narrow(0, 2 * matrix + hidden_, dim_).add_(delta2.sum(0));
    }
  }
}

Interference ClassGradients::finish() const {
  const at::NoGradGuard no_grad;
  const std::int64_t parts = sums_[0].size(0), classes = sums_[0].size(1);
  Interference found(classes, parts);
  // Gradients of mean losses, of the classes that both halves have.
  const at::Tensor present = (images_[0] * images_[1]).nonzero().select(1, 0);
  const at::Tensor images = images_[0] + images_[1];
  Squares halves, whole;
  at::Tensor norms = at::zeros({classes}, at::kDouble);
  for (std::int64_t part = 0; part < parts; ++part) {
    const auto mean = [&](const at::Tensor& sums, const at::Tensor& of) {
      return sums.index_select(0, present) / of.index_select(0, present).to(at::kFloat).unsqueeze(1);
    };
    const Squares one = squares(mean(sums_[0][part], images_[0]), mean(sums_[1][part], images_[1]));
    const at::Tensor all = sums_[0][part] + sums_[1][part], of_all = mean(all, images);
    const Squares biased = squares(of_all, of_all);
    if (present.numel() > 1) found.kappa_of_expert[static_cast<std::size_t>(part)] = one.kappa();
    halves = {halves.of_mean + one.of_mean, halves.mean + one.mean};
    whole = {whole.of_mean + biased.of_mean, whole.mean + biased.mean};
    norms += all.to(at::kDouble).square().sum(1);
  }
  if (present.numel() > 1) {
    found.kappa = halves.kappa();
    found.kappa_biased = whole.kappa();
  }
  norms = norms.sqrt() / images;  // no images: 0 / 0
  for (std::int64_t c = 0; c < classes; ++c)
    found.class_norm[static_cast<std::size_t>(c)] = norms[c].item<double>();
  return found;
}

}  // namespace exfusion
