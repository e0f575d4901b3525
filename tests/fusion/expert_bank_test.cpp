#include "fusion/expert_bank.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <memory>

#include "core/error.h"
#include "nn/ffn.h"
#include "numbers.h"

namespace exfusion {
namespace {

constexpr std::uint64_t kSeed = 9;

FusionConfig fusion(std::int64_t experts, const std::string& weights = "learned",
                    const std::string& init = "independent") {
  FusionConfig config;
  config.experts = experts;
  config.weights = weights;
  config.init = init;
  return config;
}

// An FFN with its flat parameters and a bank beside it.
struct Fused {
  Fused(const FusionConfig& config, std::int64_t dim, std::int64_t hidden, std::uint64_t seed = kSeed) {
    const auto values = initial_ffn(dim, hidden, kSeed, 2, 0);
    std::vector<ParameterSlot> slots(4);
    for (std::size_t t = 0; t < 4; ++t) {
      slots[t] = {.name = std::string("mlp.") + kFfnTensors[t],
                  .parameter = values[t].clone().requires_grad_(),
                  .decay = t % 2 == 0};
    }
    flat = std::make_unique<FlatParameters>(slots);
    bank = std::make_unique<ExpertBank>(config, *flat, 0, "mlp", 2, seed);
  }
  at::Tensor parameter(std::size_t t) const { return flat->slots()[t].parameter.detach(); }
  at::Tensor expert(std::size_t t) const { return bank->expert_state()[t].second; }
  // `steps` updates with gradients that depend on the step only.
  void run(int first, int last, float gradient_scale = 0.7f) {
    for (int t = first; t <= last; ++t) {
      flat->gradients().copy_(normal_numbers({flat->gradients().numel()}, static_cast<std::uint64_t>(t)));
      bank->update(AdamWConfig(), 1e-2, 2e-2, t, gradient_scale);
    }
  }
  std::unique_ptr<FlatParameters> flat;
  std::unique_ptr<ExpertBank> bank;
};

at::Tensor loss_of(const std::array<at::Tensor, 4>& w, const at::Tensor& x, const at::Tensor& y) {
  return (at::linear(at::gelu(at::linear(x, w[0], w[1])), w[2], w[3]) - y).pow(2).mean();
}

at::Tensor weights_of(const FusionConfig& config, const at::Tensor& z) {
  if (config.weights == "static") return at::full_like(z, 1.0 / static_cast<double>(z.numel()));
  return config.normalize == "softmax" ? at::softmax(z / config.temperature, 0) : z;
}

// Autograd through the explicit sum W = sum_k a_k W_k in double precision, and PyTorch's AdamW on every
// expert and z.
class ExplicitSum {
 public:
  ExplicitSum(const FusionConfig& config, const Fused& start) : config_(config) {
    const std::int64_t n = config.experts;
    z_ = at::full({n}, config.normalize == "softmax" ? 0.0 : 1.0 / static_cast<double>(n), at::kDouble);
    for (std::size_t t = 0; t < 4; ++t) experts_[t] = start.expert(t).to(at::kDouble);
  }
  // One step; returns dL/dW of the four fused tensors.
  std::array<at::Tensor, 4> step(const AdamWConfig& config, double lr, double weights_lr, int t, double scale,
                                 const at::Tensor& x, const at::Tensor& y) {
    std::array<at::Tensor, 4> fused, gradients;
    at::Tensor z = z_.clone().requires_grad_();
    const at::Tensor a = weights_of(config_, z);
    std::array<at::Tensor, 4> leaves;
    for (std::size_t i = 0; i < 4; ++i) {
      leaves[i] = experts_[i].clone().requires_grad_();
      fused[i] = at::tensordot(a, leaves[i], {0}, {0});
      fused[i].retain_grad();
    }
    loss_of(fused, x, y).backward();
    for (std::size_t i = 0; i < 4; ++i) {
      gradients[i] = fused[i].grad();
      adamw(experts_[i], leaves[i].grad() * scale, i, config, lr, i % 2 == 0 ? config.weight_decay : 0.0, t);
    }
    if (config_.weights == "learned")
      adamw(z_, z.grad() * scale, 4, config, weights_lr, config_.weight_decay, t);
    return gradients;
  }
  const at::Tensor& expert(std::size_t t) const { return experts_[t]; }
  at::Tensor a() const { return weights_of(config_, z_); }

 private:
  void adamw(at::Tensor& w, const at::Tensor& g, std::size_t i, const AdamWConfig& config, double lr,
             double decay, int t) {
    if (!m_[i].defined()) {
      m_[i] = at::zeros_like(w);
      v_[i] = at::zeros_like(w);
    }
    at::_fused_adamw_({w}, {g}, {m_[i]}, {v_[i]}, {}, {at::full({}, t, at::kFloat)}, lr, config.beta1,
                      config.beta2, decay, config.eps, false, false);
  }
  FusionConfig config_;
  at::Tensor z_;
  std::array<at::Tensor, 4> experts_;
  std::array<at::Tensor, 5> m_, v_;
};

void expect_explicit_sum(const FusionConfig& config) {
  const std::int64_t dim = 7, hidden = 13;
  Fused fused(config, dim, hidden);
  for (std::size_t t = 0; t < 4; ++t) fused.expert(t).copy_(normal_numbers(fused.expert(t).sizes(), 70 + t));
  fused.bank->fuse();
  ExplicitSum reference(config, fused);
  AdamWConfig adamw;
  adamw.eps = 1e-3;  // no division by gradients that are only rounding
  for (int t = 1; t <= 6; ++t) {
    const at::Tensor x = normal_numbers({11, dim}, 500 + static_cast<std::uint64_t>(t), at::kDouble);
    const at::Tensor y = normal_numbers({11, dim}, 600 + static_cast<std::uint64_t>(t), at::kDouble);
    const auto gradients = reference.step(adamw, 1e-2, 2e-2, t, 0.37, x, y);
    for (std::size_t i = 0; i < 4; ++i) fused.flat->slots()[i].parameter.grad().copy_(gradients[i]);
    fused.bank->update(adamw, 1e-2, 2e-2, t, 0.37f);
    const at::Tensor a = reference.a();
    for (std::size_t i = 0; i < 4; ++i) {
      EXPECT_TRUE(at::allclose(fused.expert(i).to(at::kDouble), reference.expert(i), 0, 5e-6)) << i;
      EXPECT_TRUE(at::allclose(fused.parameter(i).to(at::kDouble),
                               at::tensordot(a, reference.expert(i), {0}, {0}), 0, 5e-6))
          << i;
    }
    for (std::int64_t k = 0; k < config.experts; ++k) {
      EXPECT_NEAR(fused.bank->a()[static_cast<std::size_t>(k)], a[k].item<double>(), 1e-6) << k;
    }
  }
  if (config.weights == "learned" && config.experts > 1) {
    EXPECT_NE(fused.bank->a()[0], fused.bank->a()[1]);
  }
}

TEST(ExpertBank, FollowsAutogradThroughTheExplicitSum) {
  for (const std::int64_t experts : {1, 2, 4, 7, 16}) {
    SCOPED_TRACE(experts);
    expect_explicit_sum(fusion(experts, "static"));
    FusionConfig config = fusion(experts);
    config.weight_decay = 0.2;
    expect_explicit_sum(config);
    config.temperature = 0.5;
    expect_explicit_sum(config);
    config.normalize = "none";
    config.temperature = 1.0;
    expect_explicit_sum(config);
  }
}

TEST(ExpertBank, OfOneIsDenseTrainingBitForBit) {
  for (const char* weights : {"static", "learned"}) {
    Fused fused(fusion(1, weights), 24, 96), dense(fusion(1, weights), 24, 96);
    DenseAdamW optimizer(*dense.flat, 0, 4);
    EXPECT_TRUE(at::equal(fused.flat->values(), dense.flat->values()));
    const auto values = initial_ffn(24, 96, kSeed, 2, 0);
    for (std::size_t t = 0; t < 4; ++t) EXPECT_TRUE(at::equal(fused.parameter(t), values[t]));
    fused.run(1, 5);
    for (int t = 1; t <= 5; ++t) {
      dense.flat->gradients().copy_(
          normal_numbers({dense.flat->gradients().numel()}, static_cast<std::uint64_t>(t)));
      optimizer.step(AdamWConfig(), 1e-2, t, 0.7f);
    }
    for (std::size_t t = 0; t < 4; ++t)
      EXPECT_TRUE(at::equal(fused.parameter(t), dense.parameter(t))) << weights;
  }
}

TEST(ExpertBank, StartsIndependentExpertsFromTheirOwnDraws) {
  const Fused fused(fusion(3), 8, 32);
  for (std::int64_t k = 0; k < 3; ++k) {
    const auto values = initial_ffn(8, 32, kSeed, 2, k);
    for (std::size_t t = 0; t < 4; ++t) EXPECT_TRUE(at::equal(fused.expert(t)[k], values[t]));
  }
  EXPECT_FALSE(at::equal(fused.expert(0)[0], fused.expert(0)[1]));
}

TEST(ExpertBank, ScaledInitKeepsTheFusedDeviation) {
  const auto deviation = [](const char* init) {
    return Fused(fusion(4, "static", init), 64, 256).parameter(0).std().item<double>();
  };
  EXPECT_NEAR(deviation("independent"), 0.02 / 2, 2e-4);
  EXPECT_NEAR(deviation("independent_scaled"), 0.02, 4e-4);
}

TEST(ExpertBank, NoiseIsRelativeToTheDeviationOfTheWeight) {
  FusionConfig config = fusion(4, "static", "copy_noise");
  config.noise = 0.5;
  const Fused fused(config, 64, 256);
  const auto dense = initial_ffn(64, 256, kSeed, 2, 0);
  for (std::size_t t = 0; t < 4; ++t) {
    const at::Tensor noise = fused.expert(t) - dense[t];
    const double expected = 0.5 * dense[t - t % 2].std().item<double>(),
                 n = static_cast<double>(noise.numel());
    EXPECT_NEAR(noise.std().item<double>(), expected, 4 * expected / std::sqrt(2 * n)) << t;  // 4 sigma
    EXPECT_NEAR(noise.mean().item<double>(), 0.0, 4 * expected / std::sqrt(n)) << t;
    EXPECT_FALSE(at::equal(noise[0], noise[1]));
  }
}

TEST(ExpertBank, KeepsCopiesIdenticalWhateverTheWeights) {
  FusionConfig none = fusion(3, "learned", "copy");
  none.normalize = "none";
  for (const FusionConfig& config : {fusion(3, "static", "copy"), fusion(3, "learned", "copy"), none}) {
    Fused fused(config, 9, 17);
    fused.run(1, 20);
    for (std::size_t t = 0; t < 4; ++t) {
      for (std::int64_t k = 1; k < 3; ++k) EXPECT_TRUE(at::equal(fused.expert(t)[k], fused.expert(t)[0]));
    }
    for (const float a : fused.bank->a()) EXPECT_EQ(a, fused.bank->a()[0]);
    if (config.normalize == "softmax") {
      EXPECT_EQ(fused.bank->a()[0], 1.0f / 3.0f);
    }
  }
}

void copy_state(const Fused& from, Fused& to) {
  for (const auto& state : {&ExpertBank::expert_state, &ExpertBank::optimizer_state}) {
    const NamedTensors source = ((*from.bank).*state)(), target = ((*to.bank).*state)();
    ASSERT_EQ(source.size(), target.size());
    for (std::size_t i = 0; i < source.size(); ++i) {
      EXPECT_EQ(source[i].first, target[i].first);
      at::Tensor(target[i].second).copy_(source[i].second);
    }
  }
}

TEST(ExpertBank, GoesOnFromItsStateBitForBit) {
  FusionConfig none = fusion(5);
  none.normalize = "none";
  for (const FusionConfig& config : {fusion(5, "static"), fusion(5), none}) {
    Fused first(config, 31, 65), second(config, 31, 65, /*seed=*/1234);
    first.run(1, 5);
    copy_state(first, second);
    second.bank->restored();
    EXPECT_TRUE(at::equal(first.flat->values(), second.flat->values()));
    EXPECT_EQ(first.bank->a(), second.bank->a());
    first.run(6, 10);
    second.run(6, 10);
    EXPECT_TRUE(at::equal(first.flat->values(), second.flat->values()));
    EXPECT_EQ(first.bank->a(), second.bank->a());
  }
}

TEST(ExpertBank, NamesItsState) {
  const Fused fused(fusion(2), 3, 5);
  const NamedTensors experts = fused.bank->expert_state(), optimizer = fused.bank->optimizer_state();
  EXPECT_EQ(experts[0].first, "mlp.fc1.weight");
  EXPECT_EQ(experts[0].second.sizes(), (at::IntArrayRef{2, 5, 3}));
  EXPECT_EQ(experts[4].first, "mlp.a");
  EXPECT_EQ(experts[4].second.scalar_type(), at::kFloat);
  EXPECT_EQ(optimizer[0].first, "exp_avg.mlp.fc1.weight");
  EXPECT_EQ(optimizer[8].first, "mlp.z");
  EXPECT_EQ(optimizer[8].second.scalar_type(), at::kDouble);
  EXPECT_EQ(Fused(fusion(2, "static"), 3, 5).bank->optimizer_state().size(), 8u);
}

TEST(ExpertBank, RefusesWeightsThatDoNotBelongToTheState) {
  for (const char* weights : {"static", "learned"}) {
    for (const float wrong : {0.3f, std::nanf("")}) {
      Fused fused(fusion(4, weights), 3, 5);
      fused.bank->expert_state()[4].second[1] = wrong;
      EXPECT_THROW(fused.bank->restored(), CheckpointError) << weights;
    }
  }
}

TEST(ExpertBank, HasTheSameBitsForAnyNumberOfThreads) {
  const int threads = omp_get_max_threads();
  std::vector<at::Tensor> values;
  for (const int count : {1, 2, 3}) {
    omp_set_num_threads(count);
    Fused fused(fusion(3), 128, 512);
    fused.run(1, 3);
    values.push_back(fused.flat->values());
  }
  omp_set_num_threads(threads);
  EXPECT_TRUE(at::equal(values[0], values[1]));
  EXPECT_TRUE(at::equal(values[0], values[2]));
}

}  // namespace
}  // namespace exfusion
