#include "fusion/router_memory.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "core/error.h"
#include "core/random.h"
#include "nn/init.h"
#include "nn/precision.h"

namespace exfusion {
namespace {

at::Tensor tokens_of(const at::Tensor& x) {
  return x.detach().reshape({-1, x.size(-1)}).to(at::kFloat);
}

at::Tensor probabilities(const at::Tensor& tokens, const at::Tensor& router, double temperature) {
  return at::softmax(at::matmul(tokens, router.t()) / temperature, 1);
}

void set_zero(const at::Tensor& x) {
  std::memset(x.mutable_data_ptr(), 0, x.nbytes());
}

// dL/dR_k = sum_j g_j S[k, j, :], from S [N, N, dim].
void add_up_jacobian(std::span<const double> g, const at::Tensor& jacobian, const at::Tensor& gradient) {
  const std::int64_t dim = jacobian.size(2);
  const auto* s = jacobian.const_data_ptr<float>();
  auto* sum = gradient.mutable_data_ptr<float>();
  for (std::size_t k = 0; k < g.size(); ++k, sum += dim) {
    std::fill_n(sum, dim, 0.0f);
    for (std::size_t j = 0; j < g.size(); ++j, s += dim) {
      const auto factor = static_cast<float>(g[j]);
      for (std::int64_t i = 0; i < dim; ++i) sum[i] += factor * s[i];
    }
  }
}

}  // namespace

RouterMemory::RouterMemory(const FusionConfig& config, std::int64_t dim, std::uint64_t seed, std::int64_t ffn)
    : config_(config) {
  const std::int64_t n = config.experts;
  router_ = at::empty({n, dim});
  fill_normal(router_, config.router_std, {seed, Draw::router_init, 0, ffn});
  exp_avg_ = at::zeros({n, dim});
  exp_avg_sq_ = at::zeros({n, dim});
  gradient_ = at::zeros({n, dim});
  memory_ = at::full({n}, 1.0 / static_cast<double>(n), at::kDouble);
  routing_ = at::zeros({n}, at::kDouble);
  jacobian_ = at::zeros({n, n, dim});
  if (config.forward == "memory") last_jacobian_ = at::zeros({n, n, dim});
}

void RouterMemory::begin_step(std::int64_t samples) {
  samples_ = samples;
  set_zero(routing_);
  set_zero(jacobian_);
}

// dr_j/dR_k = 1/(T temperature) sum_t p_tk (delta_kj - p_tj) x_t. The products p_tk p_tj are symmetric, so
// half of them are enough, and their sum over j is sum_t p_tk x_t.
void RouterMemory::add(const at::Tensor& x) {
  const at::NoGradGuard no_grad;
  // The router is fp32 whatever the precision of the model's matrix products.
  const NoAutocast fp32(c10::autocast_dispatch_keyset);
  const at::Tensor tokens = tokens_of(x);
  const at::Tensor p = probabilities(tokens, router_, config_.temperature);
  const double share = 1.0 / static_cast<double>(samples_ * (tokens.size(0) / x.size(0)));
  routing_.add_(p.sum(0, /*keepdim=*/false, at::kDouble), share);

  const std::int64_t n = config_.experts;
  const at::Tensor pairs = at::triu_indices(n, n, 0, at::kLong);
  const at::Tensor products =
      p.index_select(1, pairs[0]) * p.index_select(1, pairs[1]);  // [T, N (N + 1) / 2]
  const at::Tensor sums = at::matmul(products.t(), tokens) * (share / config_.temperature);
  at::Tensor both = at::empty({n, n, tokens.size(1)});
  both.index_put_({pairs[0], pairs[1]}, sums);
  both.index_put_({pairs[1], pairs[0]}, sums);
  jacobian_.sub_(both);
  jacobian_.diagonal().add_(both.sum(1).t());
}

double RouterMemory::blended(const double* r, std::size_t k) const {
  return memory_.const_data_ptr<double>()[k] * config_.momentum + r[k] * (1.0 - config_.momentum);
}

void RouterMemory::weights_from(const double* r, std::span<float> a) const {
  const bool routed = config_.forward == "routed";
  for (std::size_t k = 0; k < a.size(); ++k) a[k] = static_cast<float>(routed ? r[k] : blended(r, k));
}

void RouterMemory::next_memory(std::span<float> m) const {
  const auto* r = routing_.const_data_ptr<double>();
  for (std::size_t k = 0; k < m.size(); ++k) m[k] = static_cast<float>(blended(r, k));
}

void RouterMemory::weights_in_step(std::span<float> a) const {
  weights_from(routing_.const_data_ptr<double>(), a);
}

void RouterMemory::weights_for(const at::Tensor& x, std::span<float> a) const {
  const at::NoGradGuard no_grad;
  const NoAutocast fp32(c10::autocast_dispatch_keyset);
  const at::Tensor r =
      probabilities(tokens_of(x), router_, config_.temperature).mean(0, /*keepdim=*/false, at::kDouble);
  weights_from(r.const_data_ptr<double>(), a);
}

// dL/dr, where r enters the loss through a and through the penalty -balance H(m). Its mean is taken off: r
// sums to 1, so a constant has no effect, and prices of nearly equal experts would drown in the rounding of
// one.
void RouterMemory::loss_gradient(std::span<const double> prices, std::span<double> gradient) const {
  const double through_memory = 1.0 - config_.momentum;
  const double through_a = config_.forward == "routed" ? 1.0 : through_memory;
  double mean = 0.0;
  const auto* m = memory_.const_data_ptr<double>();
  const auto* r = routing_.const_data_ptr<double>();
  for (std::size_t j = 0; j < prices.size(); ++j) {
    const double used = config_.forward == "memory" ? m[j] : config_.momentum * m[j] + through_memory * r[j];
    const double penalty = config_.balance * (std::log(std::max(used, 1e-30)) + 1.0);
    gradient[j] = through_a * prices[j] + through_memory * penalty;
    mean += gradient[j] / static_cast<double>(prices.size());
  }
  for (double& x : gradient) x -= mean;
}

void RouterMemory::compute_gradient(std::span<const double> prices) {
  std::array<double, kMaxExperts> storage;
  const std::span<double> gradient = std::span(storage).first(prices.size());
  loss_gradient(prices, gradient);
  add_up_jacobian(gradient, last_jacobian_.defined() ? last_jacobian_ : jacobian_, gradient_);
}

void RouterMemory::update(const AdamWConfig& config, double lr, std::int64_t update, float gradient_scale) {
  adamw_update<float>(router_.numel(), router_.mutable_data_ptr<float>(), exp_avg_.mutable_data_ptr<float>(),
                      exp_avg_sq_.mutable_data_ptr<float>(), gradient_.const_data_ptr<float>(),
                      gradient_scale, adamw_scalars<float>(config, lr, config_.weight_decay, update));
  const auto* r = routing_.const_data_ptr<double>();
  for (std::int64_t k = 0; k < memory_.numel(); ++k)
    memory_.mutable_data_ptr<double>()[k] = blended(r, static_cast<std::size_t>(k));
  if (last_jacobian_.defined())
    std::memcpy(last_jacobian_.mutable_data_ptr(), jacobian_.const_data_ptr(), jacobian_.nbytes());
}

std::vector<float> RouterMemory::memory() const {
  const auto* values = memory_.const_data_ptr<double>();
  return {values, values + memory_.numel()};
}

NamedTensors RouterMemory::expert_state(const std::string& name) const {
  return {{name + ".router.weight", router_}, {name + ".memory", memory_}};
}

NamedTensors RouterMemory::optimizer_state(const std::string& name) const {
  NamedTensors state = {{"exp_avg." + name + ".router.weight", exp_avg_},
                        {"exp_avg_sq." + name + ".router.weight", exp_avg_sq_}};
  if (last_jacobian_.defined()) state.emplace_back(name + ".router.jacobian", last_jacobian_);
  return state;
}

void RouterMemory::restored(const std::string& name) const {
  double sum = 0.0;
  for (const float m : memory()) {
    if (!(m >= 0.0f)) sum = std::nan("");
    sum += m;
  }
  if (!(std::abs(sum - 1.0) <= 1e-4))
    throw CheckpointError("experts: " + name + ".memory must be a distribution (not negative, sum 1)");
}

}  // namespace exfusion
