#include "fusion/fused_update.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <omp.h>

#include "numbers.h"
#include "optim/adamw.h"
#include "optim/reduction.h"

namespace exfusion {
namespace {

template <class T>
std::vector<T> uneven_weights(std::int64_t experts, int shift) {
  std::vector<T> a(static_cast<std::size_t>(experts));
  for (std::size_t k = 0; k < a.size(); ++k)
    a[k] = static_cast<T>(0.1 + 0.07 * static_cast<double>((k + static_cast<std::size_t>(shift)) % 5) -
                          0.15 * (k == 2));
  return a;
}

// The loops here are compiled for the baseline instruction set; the kernel is dispatched.
template <class T>
void expect_element_bits(std::int64_t experts, std::int64_t size, bool shared = false) {
  Experts<T> ours(experts, size, 11, shared), plain(experts, size, 11, shared);
  const std::vector<T*> w = plain.rows(plain.w), m = plain.rows(plain.m), v = plain.rows(plain.v);
  for (int t = 1; t <= 3; ++t) {
    const at::Tensor g = normal_numbers({size}, 50 + static_cast<std::uint64_t>(t), plain.w.scalar_type());
    const std::vector<T> a = uneven_weights<T>(experts, t), next = uneven_weights<T>(experts, t + 1);
    const auto scalars = adamw_scalars<T>(AdamWConfig(), 1e-2, 0.05, t);
    ours.update(g, a, next, T(0.37), scalars);
    for (std::int64_t i = 0; i < size; ++i) {
      plain.fused.template mutable_data_ptr<T>()[i] =
          shared ? fused_shared_element<T>(i, static_cast<int>(experts), g.template const_data_ptr<T>()[i],
                                           T(0.37), w.data(), m[0], v[0], a.data(), next.data(), scalars)
                 : fused_element<T>(i, static_cast<int>(experts), g.template const_data_ptr<T>()[i], T(0.37),
                                    w.data(), m.data(), v.data(), a.data(), next.data(), scalars);
    }
    ASSERT_TRUE(at::equal(ours.fused, plain.fused)) << experts << " experts of " << size;
    const at::Tensor updated = ours.fused.clone();
    ours.fuse(next);
    ASSERT_TRUE(at::equal(ours.fused, updated)) << experts << " experts of " << size;
  }
  EXPECT_TRUE(at::equal(ours.w, plain.w) && at::equal(ours.m, plain.m) && at::equal(ours.v, plain.v));
}

TEST(FusedUpdate, HasTheBitsOfItsElementFunction) {
  for (const std::int64_t experts : {1, 2, 4, 7, 16, 64}) {
    for (const std::int64_t size : {1, 17, 2'048, 5'001}) {
      expect_element_bits<float>(experts, size);
      expect_element_bits<double>(experts, size);
      if (experts == 1) continue;
      expect_element_bits<float>(experts, size, /*shared=*/true);
      expect_element_bits<double>(experts, size, /*shared=*/true);
    }
  }
}

// More than one run for every thread.
TEST(FusedUpdate, HasTheSameBitsForLargeTensors) {
  for (const std::int64_t experts : {1, 3}) {
    expect_element_bits<float>(experts, 300'001);
    expect_element_bits<double>(experts, 300'001);
  }
}

TEST(FusedUpdate, HasTheSameBitsForAnyNumberOfThreads) {
  const int threads = omp_get_max_threads();
  for (const int count : {1, 2, 3}) {
    omp_set_num_threads(count);
    expect_element_bits<float>(3, 70'001);
    expect_element_bits<float>(3, 70'001, /*shared=*/true);
  }
  omp_set_num_threads(threads);
}

TEST(FusedUpdate, GivesThePricesOfTheExpertsBeforeTheUpdate) {
  for (const std::int64_t size : {1, 129, 4095, 8193, 40'000, 300'001}) {
    Experts<float> experts(3, size, 4), same(3, size, 4);
    const at::Tensor g = normal_numbers({size}, 5);
    const std::vector<float*> w = Experts<float>::rows(experts.w), m = Experts<float>::rows(experts.m),
                              v = Experts<float>::rows(experts.v);
    std::vector<double> expected(3), found(3);
    inner_products<float>(g.const_data_ptr<float>(), std::vector<const float*>(w.begin(), w.end()), size,
                          expected);
    const std::vector<float> a = {0.2f, 0.3f, 0.5f};
    const auto scalars = adamw_scalars<float>(AdamWConfig(), 1e-3, 0.05, 1);
    fused_update<float>({size, experts.fused.mutable_data_ptr<float>(), g.const_data_ptr<float>(), w, m, v},
                        a, a, 1.0f, scalars, found);
    EXPECT_EQ(found, expected) << size;
    same.update(g, a, a, 1.0f, scalars);
    EXPECT_TRUE(at::equal(experts.w, same.w) && at::equal(experts.fused, same.fused)) << size;
  }
}

TEST(FusedUpdate, WritesWhatTheFusedWeightsRoundTo) {
  for (const std::int64_t size : {1, 8193, 40'000, 300'001}) {
    Experts<float> experts(3, size, 4);
    const at::Tensor g = normal_numbers({size}, 5);
    const std::vector<float*> w = Experts<float>::rows(experts.w), m = Experts<float>::rows(experts.m),
                              v = Experts<float>::rows(experts.v);
    const at::Tensor copy = at::zeros({size + 1}, at::kBFloat16).narrow(0, 1, size);  // off every alignment
    const ExpertTensors<float> tensors{.size = size,
                                       .fused = experts.fused.mutable_data_ptr<float>(),
                                       .gradient = g.const_data_ptr<float>(),
                                       .w = w,
                                       .m = m,
                                       .v = v,
                                       .bf16 = static_cast<std::uint16_t*>(copy.mutable_data_ptr())};
    const std::vector<float> a = {0.2f, 0.3f, 0.5f}, next = {0.1f, 0.7f, 0.2f};
    fused_update<float>(tensors, a, next, 1.0f, adamw_scalars<float>(AdamWConfig(), 1e-3, 0.05, 1));
    const at::Tensor updated = copy.clone();
    EXPECT_TRUE(at::equal(updated, experts.fused.to(at::kBFloat16))) << size;
    fuse_experts<float>(tensors, a);
    EXPECT_TRUE(at::equal(copy, experts.fused.to(at::kBFloat16))) << size;
    EXPECT_FALSE(at::equal(copy, updated)) << size;
  }
}

TEST(FusedUpdate, OfOneExpertIsDenseAdamWBitForBit) {
  const std::int64_t size = 33'333;
  Experts<float> fused(1, size, 5), dense(1, size, 5);
  for (int t = 1; t <= 5; ++t) {
    const at::Tensor g = normal_numbers({size}, 80 + static_cast<std::uint64_t>(t));
    const auto scalars = adamw_scalars<float>(AdamWConfig(), 1e-2, 0.05, t);
    fused.update(g, {1.0f}, {1.0f}, 0.3f, scalars);
    adamw_update(size, dense.w.mutable_data_ptr<float>(), dense.m.mutable_data_ptr<float>(),
                 dense.v.mutable_data_ptr<float>(), g.const_data_ptr<float>(), 0.3f, scalars);
    EXPECT_TRUE(at::equal(fused.fused, dense.w[0]));
  }
  EXPECT_TRUE(at::equal(fused.m, dense.m) && at::equal(fused.v, dense.v));
}

// dL/da_k = <G, W_k>: a two-layer network in double precision, perturbed weight by weight.
TEST(FusedWeights, GradientAgreesWithFiniteDifferences) {
  const std::int64_t experts = 5;
  const at::Tensor w1 = normal_numbers({experts, 9, 6}, 1, at::kDouble),
                   w2 = normal_numbers({experts, 4, 9}, 2, at::kDouble);
  const at::Tensor x = normal_numbers({8, 6}, 3, at::kDouble), y = normal_numbers({8, 4}, 4, at::kDouble);
  const auto fused = [](const at::Tensor& a, const at::Tensor& w) { return at::tensordot(a, w, {0}, {0}); };
  const auto loss = [&](const at::Tensor& first, const at::Tensor& second) {
    return (at::linear(at::gelu(at::linear(x, first)), second) - y).pow(2).mean();
  };
  const at::Tensor a = at::tensor({0.3, 0.1, -0.2, 0.5, 0.25}, at::kDouble);
  const at::Tensor first = fused(a, w1).requires_grad_(), second = fused(a, w2).requires_grad_();
  loss(first, second).backward();
  for (std::int64_t k = 0; k < experts; ++k) {
    double gradient = 0.0;
    for (const auto& [g, w] : {std::pair(first.grad(), w1[k]), std::pair(second.grad(), w2[k])}) {
      const at::Tensor flat = g.contiguous(), row = w.contiguous();
      const auto* pointer = row.const_data_ptr<double>();
      double part = 0.0;
      inner_products<double>(flat.const_data_ptr<double>(), std::span(&pointer, 1), flat.numel(),
                             std::span(&part, 1));
      gradient += part;
    }
    at::Tensor up = a.clone(), down = a.clone();
    const double h = 1e-5;
    up[k] += h;
    down[k] -= h;
    const double difference =
        (loss(fused(up, w1), fused(up, w2)) - loss(fused(down, w1), fused(down, w2))).item<double>() /
        (2 * h);
    EXPECT_NEAR(gradient, difference, 1e-7 * std::max(1.0, std::abs(difference))) << k;  // method.md 5.6
  }
}

}  // namespace
}  // namespace exfusion
