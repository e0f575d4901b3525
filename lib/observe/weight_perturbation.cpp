#include "observe/weight_perturbation.h"

#include <ATen/ATen.h>

#include <cmath>

#include "analysis/draws.h"
#include "nn/init.h"

namespace exfusion {
namespace {

at::Tensor normal_matrix(std::int64_t rows, std::int64_t columns, std::int64_t number) {
  const at::Tensor drawn = at::empty({rows, columns});
  fill_normal(
      drawn, 1.0,
      {0, Draw::resampling, static_cast<std::int64_t>(analysis::Purpose::random_perturbation), number});
  return drawn.to(at::kDouble);
}

// [size, rank] with orthonormal columns, uniform over all such (Mezzadri 2007: the signs of R's diagonal).
at::Tensor orthonormal_columns(std::int64_t size, std::int64_t rank, std::int64_t number) {
  const auto [q, r] = at::linalg_qr(normal_matrix(size, rank, number), "reduced");
  return q * r.diagonal().sign();
}

double norm_of(const FfnTensors& tensors) {
  double squares = 0.0;
  for (const at::Tensor& tensor : tensors) squares += tensor.to(at::kDouble).square().sum().item<double>();
  return std::sqrt(squares);
}

}  // namespace

FfnTensors step_without(const FfnTensors& offsets, double a, std::int64_t k) {
  FfnTensors step;
  for (std::size_t t = 0; t < step.size(); ++t)
    step[t] = offsets[t].select(0, k).to(at::kDouble) * (-a / (1.0 - a));
  return step;
}

FfnTensors random_step_like(const FfnTensors& step, std::int64_t block, std::int64_t repetition) {
  FfnTensors drawn;
  for (std::size_t t = 0; t < drawn.size(); ++t) {
    const std::int64_t number = ((block << 12 | repetition) << 3) + 2 * static_cast<std::int64_t>(t);
    const at::Tensor matrix = step[t].dim() == 2 ? step[t] : step[t].unsqueeze(1);
    const at::Tensor singular = at::linalg_svdvals(matrix);
    const at::Tensor left = orthonormal_columns(matrix.size(0), singular.size(0), number),
                     right = orthonormal_columns(matrix.size(1), singular.size(0), number + 1);
    drawn[t] = (left * singular).matmul(right.t()).view(step[t].sizes());
  }
  return drawn;
}

FfnTensors stepped(const FfnTensors& w, const FfnTensors& step) {
  FfnTensors moved;
  for (std::size_t t = 0; t < w.size(); ++t)
    moved[t] = (w[t].detach().to(at::kDouble) + step[t]).to(at::kFloat);
  return moved;
}

FfnTensors scaled_to(const FfnTensors& tensors, const FfnTensors& w) {
  const double own = norm_of(tensors), factor = own > 0.0 ? norm_of(w) / own : 1.0;
  FfnTensors scaled;
  for (std::size_t t = 0; t < w.size(); ++t) scaled[t] = tensors[t] * factor;
  return scaled;
}

}  // namespace exfusion
