#include "observe/fused_landscape.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>

#include "models/model.h"
#include "observe/expert_pairs.h"
#include "observe/intervention.h"
#include "observe/observed_blocks.h"
#include "observe/virtual_scores.h"

namespace exfusion {
namespace {

using Blocks = std::vector<std::shared_ptr<Block>>;
constexpr double kStep = 1e-4;  // in a
constexpr double kLambdas[] = {0.0, 0.25, 0.5, 0.75, 1.0};

// A model in double precision, and as it was afterwards: fp32 numbers are double ones.
class InDouble {
 public:
  explicit InDouble(Model& model) : model_(model), type_(model.parameters().front().scalar_type()) {
    model_.to(at::kDouble);
  }
  ~InDouble() { model_.to(type_); }
  InDouble(const InDouble&) = delete;
  InDouble& operator=(const InDouble&) = delete;

 private:
  Model& model_;
  at::ScalarType type_;
};

FfnTensors all_in_double(const FfnTensors& tensors) {
  FfnTensors wide;
  for (std::size_t t = 0; t < wide.size(); ++t) wide[t] = tensors[t].to(at::kDouble);
  return wide;
}

FfnTensors moved(const FfnTensors& w, const FfnTensors& directions, std::int64_t k, double step) {
  FfnTensors found;
  for (std::size_t t = 0; t < w.size(); ++t) found[t] = w[t] + step * directions[t].select(0, k);
  return found;
}

// One FFN on some images, with the model behind it.
class FfnLoss {
 public:
  FfnLoss(Model& model, const Blocks& blocks, std::size_t block, const HeldOutBatch& batch)
      : model_(model), blocks_(blocks), block_(block) {
    const at::NoGradGuard no_grad;
    const std::int64_t images = std::min(kCurvatureImages, batch.labels.size(0));
    labels_ = batch.labels.narrow(0, 0, images);
    blocks[block]->observe_ffn([this, &blocks, block](const at::Tensor& x, const at::Tensor& stream) {
      x_ = x;
      stream_ = stream;
      return blocks[block]->ffn()->forward(x);
    });
    model.forward(batch.images.narrow(0, 0, images).to(at::kDouble), {});
    blocks[block]->observe_ffn(nullptr);
  }

  // <dL/dW at w, D_k> for each of the directions, L the mean cross entropy. [N]
  at::Tensor slopes(const FfnTensors& w, const FfnTensors& directions) const {
    const at::AutoGradMode with_gradients(true);
    std::vector<at::Tensor> at_w;
    for (const at::Tensor& tensor : w) at_w.push_back(tensor.detach().clone().requires_grad_());
    const at::Tensor y = at::linear(at::gelu(at::linear(x_, at_w[0], at_w[1])), at_w[2], at_w[3]);
    const at::Tensor loss = at::cross_entropy_loss(run_from(model_, blocks_, block_, stream_, y), labels_);
    const std::vector<at::Tensor> gradient = torch::autograd::grad({loss}, at_w);
    at::Tensor found = at::zeros({directions[0].size(0)}, at::kDouble);
    for (std::size_t t = 0; t < w.size(); ++t)
      found += at::mv(directions[t].flatten(1), gradient[t].flatten());
    return found;
  }

  // [N, N]: row k, column j <D_k, H D_j> at w.
  at::Tensor curvature(const FfnTensors& w, const FfnTensors& directions) const {
    std::vector<at::Tensor> columns;
    for (std::int64_t j = 0; j < directions[0].size(0); ++j)
      columns.push_back((slopes(moved(w, directions, j, kStep), directions) -
                         slopes(moved(w, directions, j, -kStep), directions)) /
                        (2.0 * kStep));
    return at::stack(columns, 1).contiguous();
  }

 private:
  Model& model_;
  const Blocks& blocks_;
  std::size_t block_;
  at::Tensor x_, stream_, labels_;
};

// Random directions of the overall size of W_k - mean W.
FfnTensors random_offsets(const FfnTensors& experts, std::uint32_t repetition, std::int64_t block) {
  FfnTensors differences;
  for (std::size_t t = 0; t < experts.size(); ++t)
    differences[t] = experts[t] - experts[t].mean(0, /*keepdim=*/true);
  const auto n = static_cast<std::size_t>(experts[0].size(0));
  FfnTensors drawn =
      random_directions(differences, std::vector<double>(n, 1.0 / static_cast<double>(n)), repetition, block);
  for (std::size_t t = 0; t < drawn.size(); ++t) {  // subtracting the mean has made them smaller
    const double size = drawn[t].norm().item<double>();
    if (size > 0.0) drawn[t] = drawn[t] * (differences[t].norm().item<double>() / size);
  }
  return drawn;
}

double slope_of(const at::Tensor& gamma) {
  return price_slope({gamma.const_data_ptr<double>(), static_cast<std::size_t>(gamma.numel())},
                     static_cast<std::size_t>(gamma.size(0)));
}

PriceCurvature curvature_of(const std::vector<FfnLoss>& halves, const FusedSet& set) {
  const FfnTensors experts = all_in_double(set.experts);
  const FfnTensors w = fused_tensors({set.name, set.block, experts, set.a});
  PriceCurvature found{set.block, {}, 0.0, 0.0, {}, std::vector<double>(kRandomCurvatures, 0.0)};
  at::Tensor gamma = at::zeros({set.size(), set.size()}, at::kDouble);
  for (const FfnLoss& half : halves) {
    const at::Tensor one = half.curvature(w, experts);
    found.of_halves.push_back(slope_of(one));
    gamma += one / static_cast<double>(halves.size());
    for (std::uint32_t r = 0; r < kRandomCurvatures; ++r)
      found.random[r] += slope_of(half.curvature(w, random_offsets(experts, r, set.block))) /
                         static_cast<double>(halves.size());
  }
  found.slope = slope_of(gamma);
  found.asymmetry = ((gamma - gamma.t()).abs().max() / gamma.abs().max()).item<double>();
  found.gamma.assign(gamma.const_data_ptr<double>(), gamma.const_data_ptr<double>() + gamma.numel());
  return found;
}

// Interventions along each pair, kLambdas for each.
std::vector<Intervention> between(const FfnTensors& ends,
                                  const std::vector<std::pair<std::int64_t, std::int64_t>>& pairs) {
  std::vector<Intervention> found;
  for (const auto& [i, j] : pairs) {
    for (const double lambda : kLambdas) {
      FfnTensors at_lambda;  // exactly the same tensors for copies
      for (std::size_t t = 0; t < ends.size(); ++t)
        at_lambda[t] = at::lerp(ends[t].select(0, j), ends[t].select(0, i), lambda);
      found.push_back(with_weights(std::move(at_lambda)));
    }
  }
  return found;
}

double barrier_of(const analysis::HeldOutImages& held_out, const analysis::ImageSums* changes) {
  const std::vector<double> all(held_out.batches, 1.0);
  std::vector<double> loss;
  for (std::size_t i = 0; i < std::size(kLambdas); ++i)
    loss.push_back(analysis::mean_loss(held_out, changes[i], all));
  double highest = 0.0;
  for (std::size_t i = 0; i < loss.size(); ++i)
    highest = std::max(highest, loss[i] - std::lerp(loss.front(), loss.back(), kLambdas[i]));
  return highest;
}

}  // namespace

double price_slope(std::span<const double> gamma, std::size_t experts) {
  double trace = 0.0, sum = 0.0;
  for (std::size_t i = 0; i < gamma.size(); ++i) {
    sum += gamma[i];
    if (i / experts == i % experts) trace += gamma[i];
  }
  const auto n = static_cast<double>(experts);
  return experts < 2 ? std::nan("") : (trace - sum / n) / (n - 1.0);
}

std::vector<PriceCurvature> price_curvatures(Model& model, const std::vector<FusedSet>& sets,
                                             const std::vector<HeldOutBatch>& batches,
                                             const std::function<void(double)>& progress) {
  std::vector<PriceCurvature> found;
  if (batches.size() < 2) return found;
  const InDouble wide(model);
  const ObservedBlocks observed(model);
  for (const FusedSet& set : sets) {
    if (!set.whole()) continue;
    std::vector<FfnLoss> halves;
    halves.reserve(2);
    for (std::size_t b = 0; b < 2; ++b)
      halves.emplace_back(model, observed.blocks(), static_cast<std::size_t>(set.block), batches[b]);
    found.push_back(curvature_of(halves, set));
    if (progress) progress(static_cast<double>(found.size()) / static_cast<double>(sets.size()));
  }
  return found;
}

std::vector<LossBarriers> loss_barriers(Model& model, const std::vector<FusedSet>& sets,
                                        const std::vector<HeldOutBatch>& batches, std::int64_t classes,
                                        const std::function<void(double)>& progress) {
  const at::NoGradGuard no_grad;
  const ObservedBlocks observed(model);
  const std::vector<HeldOutBatch> some(
      batches.begin(),
      batches.begin() + static_cast<std::ptrdiff_t>(std::min(kBarrierBatches, batches.size())));
  const analysis::HeldOutImages held_out = unchanged_model(model, some, classes);
  std::vector<LossBarriers> found;
  for (const FusedSet& set : sets) {
    if (!set.whole()) continue;
    LossBarriers one{set.block, 0.0, expert_pairs(set.size()), {}, {}};
    for (const double images : held_out.images) one.images += images;
    const FfnTensors w = fused_tensors(set);
    FfnTensors random = random_directions(offsets(set), set.a, 0, set.block);
    for (std::size_t t = 0; t < random.size(); ++t) random[t] = w[t] + random[t];
    std::vector<Intervention> points = between(set.experts, one.pairs);
    for (Intervention& point : between(random, one.pairs)) points.push_back(std::move(point));
    const std::vector<analysis::ImageSums> changes = measure_interventions(
        model, observed.blocks(), static_cast<std::size_t>(set.block), some, held_out, points);
    for (std::size_t p = 0; p < 2 * one.pairs.size(); ++p)
      (p < one.pairs.size() ? one.barrier : one.random)
          .push_back(barrier_of(held_out, changes.data() + p * std::size(kLambdas)));
    found.push_back(std::move(one));
    if (progress) progress(static_cast<double>(found.size()) / static_cast<double>(sets.size()));
  }
  return found;
}

}  // namespace exfusion
