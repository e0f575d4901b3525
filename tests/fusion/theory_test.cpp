// What the theory says about constant weights (method.md 3, analysis.md D.1), on the kernels in double
// precision. The vectors are golden values computed elsewhere.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "numbers.h"
#include "optim/adamw.h"

namespace exfusion {
namespace {

using nlohmann::json;
using Weights = std::vector<double>;

json vectors(const std::string& name) {
  std::ifstream file(std::string(EXFUSION_TEST_DATA "/vectors/") + name);
  return json::parse(file);
}

json case_named(const json& file, const std::string& name) {
  for (const json& one : file.at("cases")) {
    if (one.at("name") == name) return one;
  }
  throw std::runtime_error("no case " + name);
}

AdamWConfig config_with(double lr, double weight_decay, double eps) {
  AdamWConfig config;
  config.lr = lr;
  config.weight_decay = weight_decay;
  config.eps = eps;
  return config;
}

struct Trajectories {
  Experts<double> experts;
  at::Tensor start, dense;
  double distance = 0.0;  // max |W - dense|
};

// Experts under constant a, and one dense tensor from the same start, on a quadratic loss with a new target
// at every step.
Trajectories train(const Weights& a, const AdamWConfig& config, const AdamWConfig& dense_config, int steps) {
  const std::int64_t size = 301;
  Trajectories run{Experts<double>(static_cast<std::int64_t>(a.size()), size, 21), {}, {}};
  run.start = run.experts.w.clone();
  run.experts.fuse(a);
  run.dense = run.experts.fused.clone();
  at::Tensor m = at::zeros_like(run.dense), v = at::zeros_like(run.dense);
  for (int t = 1; t <= steps; ++t) {
    const at::Tensor target = normal_numbers({size}, 1'000 + static_cast<std::uint64_t>(t), at::kDouble);
    const at::Tensor g = run.experts.fused - target, dense_g = run.dense - target;
    run.experts.update(g, a, a, 1.0, adamw_scalars<double>(config, config.lr, config.weight_decay, t));
    adamw_update(size, run.dense.mutable_data_ptr<double>(), m.mutable_data_ptr<double>(),
                 v.mutable_data_ptr<double>(), dense_g.const_data_ptr<double>(), 1.0,
                 adamw_scalars<double>(dense_config, dense_config.lr, dense_config.weight_decay, t));
  }
  run.distance = (run.experts.fused - run.dense).abs().max().item<double>();
  return run;
}

TEST(StaticWeights, UnderAdamWWithoutEpsAreDenseTrainingWithMappedRates) {
  const json file = vectors("m3_static_equivalence.json");
  for (const char* name : {"adamw_normalised", "adamw_unnormalised_ones"}) {
    const json one = case_named(file, name);
    const AdamWConfig config = config_with(one["inputs"]["lr"], one["inputs"]["wd"], 0.0);
    const AdamWConfig dense = config_with(one["expected"]["lr_dense"], one["expected"]["wd_dense"], 0.0);
    EXPECT_LT(train(one["inputs"]["a"], config, dense, 3'000).distance, 1e-12) << name;
    EXPECT_GT(
        train(one["inputs"]["a"], config, config_with(2 * dense.lr, dense.weight_decay, 0.0), 10).distance,
        1e-3);
  }
}

TEST(StaticWeights, ScaleEpsByTheNumberOfExperts) {
  const json one = case_named(vectors("m3_static_equivalence.json"), "adamw_eps");
  const AdamWConfig config = config_with(1e-3, 0.05, one["inputs"]["eps"]);
  const AdamWConfig dense = config_with(1e-3, 0.05, one["expected"]["eps_dense"]);
  EXPECT_LT(train(one["inputs"]["a"], config, dense, 1'000).distance, 1e-12);
  const double unmapped = train(one["inputs"]["a"], config, config, 1'000).distance;
  EXPECT_LT(unmapped, 1e-4);
  EXPECT_GT(unmapped, 1e-12);
}

// `fusion.materialize: false`: one dense AdamW at eps N times as large in place of the experts, with weight
// decay and under clipping; and the experts from it.
TEST(StaticWeights, AreOneDenseTrainingFromWhichTheExpertsFollow) {
  const std::int64_t size = 301;
  for (const std::int64_t n : {2, 3, 8}) {
    const AdamWConfig config = config_with(3e-3, 0.2, 1e-3);
    AdamWConfig collapsed = config;
    collapsed.eps = static_cast<double>(n) * config.eps;
    const Weights a(static_cast<std::size_t>(n), 1.0 / static_cast<double>(n));
    Experts<double> experts(n, size, 21);
    experts.fuse(a);
    const at::Tensor start = experts.w.clone(), mean = experts.fused.clone();
    at::Tensor w = mean.clone(), m = at::zeros_like(w), v = at::zeros_like(w), plain = mean.clone(),
               plain_m = at::zeros_like(w), plain_v = at::zeros_like(w);
    const auto dense_step = [&](at::Tensor& x, at::Tensor& x_m, at::Tensor& x_v, const at::Tensor& target,
                                double scale, const AdamWConfig& how, int t) {
      const at::Tensor g = x - target;
      adamw_update(size, x.mutable_data_ptr<double>(), x_m.mutable_data_ptr<double>(),
                   x_v.mutable_data_ptr<double>(), g.const_data_ptr<double>(), scale,
                   adamw_scalars<double>(how, how.lr, how.weight_decay, t));
    };
    double kept = 1.0;
    for (int t = 1; t <= 80; ++t) {
      const at::Tensor target =
          normal_numbers({size}, 500 + static_cast<std::uint64_t>(t), at::kDouble) + 2.0;
      const double scale = std::min(1.0, 5.0 / (experts.fused - target).norm().item<double>());
      experts.update(experts.fused - target, a, a, scale,
                     adamw_scalars<double>(config, config.lr, config.weight_decay, t));
      dense_step(w, m, v, target, scale, collapsed, t);
      dense_step(plain, plain_m, plain_v, target, scale, config, t);
      kept *= 1.0 - config.lr * config.weight_decay;
    }
    EXPECT_LT((experts.fused - w).abs().max().item<double>(), 1e-12) << n;
    EXPECT_GT((experts.fused - plain).abs().max().item<double>(), 1e-4) << n;  // eps does matter here
    const at::Tensor recovered = w + kept * (start - mean);
    EXPECT_LT((experts.w - recovered).abs().max().item<double>(), 1e-12) << n;
  }
}

// `fusion.state: shared_moments`: for constant a exact, whatever its sizes and signs; otherwise not.
TEST(SharedMoments, AreExactForConstantWeights) {
  const std::int64_t size = 301;
  const AdamWConfig config = config_with(3e-3, 0.2, 1e-3);
  const Weights a = {0.6, -0.3, 0.05, 0.65}, other = {0.1, 0.2, 0.3, 0.4};
  for (const bool constant : {true, false}) {
    Experts<double> own(4, size, 21), sharing(4, size, 21, /*shares_moments=*/true);
    for (int t = 1; t <= 200; ++t) {
      const Weights& now = constant || t % 2 == 0 ? a : other;
      const Weights& next = constant || t % 2 == 1 ? a : other;
      const at::Tensor g = normal_numbers({size}, 900 + static_cast<std::uint64_t>(t), at::kDouble);
      const auto scalars = adamw_scalars<double>(config, config.lr, config.weight_decay, t);
      own.update(g, now, next, 0.7, scalars);
      sharing.update(g, now, next, 0.7, scalars);
    }
    const double difference = (own.w - sharing.w).abs().max().item<double>();
    EXPECT_EQ(difference < 1e-12, constant) << difference;
    EXPECT_EQ((own.fused - sharing.fused).abs().max().item<double>() < 1e-12, constant);
  }
}

TEST(StaticWeights, LetExpertDifferencesDecayElementByElement) {
  const int steps = 2'000;
  const Trajectories run =
      train(Weights(4, 0.25), config_with(1e-3, 0.05, 1e-8), config_with(1e-3, 0.05, 4e-8), steps);
  const auto differences = [](const at::Tensor& w) { return w - w.mean(0, true); };
  const at::Tensor expected = differences(run.start) * std::pow(1.0 - 1e-3 * 0.05, steps);
  EXPECT_LT((differences(run.experts.w) - expected).abs().max().item<double>(), 1e-10);
}

TEST(StaticWeights, KeepCopiesIdentical) {
  Experts<float> experts(4, 501, 3);
  experts.w.copy_(experts.w[0].clone().expand_as(experts.w));
  for (int t = 1; t <= 200; ++t) {
    const at::Tensor g = normal_numbers({501}, 300 + static_cast<std::uint64_t>(t));
    const std::vector<float> a(4, 0.25f);
    experts.update(g, a, a, 1.0f, adamw_scalars<float>(AdamWConfig(), 1e-2, 0.05, t));
  }
  for (std::int64_t k = 1; k < 4; ++k) EXPECT_TRUE(at::equal(experts.w[k], experts.w[0]));
}

at::Tensor tensor_of(const json& numbers) {
  std::vector<double> flat;
  for (const json& row : numbers) flat.insert(flat.end(), row.begin(), row.end());
  return at::tensor(flat, at::kDouble);
}

double cosine(const at::Tensor& x, const at::Tensor& y) {
  return (at::dot(x, y) / (x.norm() * y.norm())).item<double>();
}

class FrozenDifference : public testing::TestWithParam<const char*> {};

TEST_P(FrozenDifference, HasItsGoldenValues) {
  const json file = vectors("d1_frozen_difference.json"), one = case_named(file, GetParam());
  const json &inputs = one["inputs"], &expected = one["expected"], &tolerance = one["tolerance"];
  const auto weights_at = [&](int t) -> Weights {
    if (inputs["a"].is_array()) return inputs["a"];
    const double swing = 0.2 * std::sin(t / 10.0);  // the formula that the file gives in words
    return {0.25 + swing, 0.25 - swing, 0.25, 0.25};
  };
  const AdamWConfig config = config_with(inputs["lr"], inputs["wd_decoupled"], 1e-12);
  const int steps = inputs["steps"];
  Experts<double> experts(4, 16, 1);
  for (std::int64_t k = 0; k < 4; ++k)
    experts.w[k].copy_(tensor_of(file["setup"]["W_init"][static_cast<std::size_t>(k)]));
  const at::Tensor start = experts.w.clone(), target = tensor_of(file["setup"]["A"]);

  experts.fuse(weights_at(1));
  for (int t = 1; t <= steps; ++t) {
    const at::Tensor g = experts.fused - target;
    experts.update(g, weights_at(t), weights_at(t + 1), 1.0,
                   adamw_scalars<double>(config, config.lr, config.weight_decay, t));
  }

  const at::Tensor before = start[0] - start[1], after = experts.w[0] - experts.w[1];
  EXPECT_NEAR((after.norm() / before.norm()).item<double>(), expected["norm_ratio"], tolerance["norm_ratio"]);
  EXPECT_NEAR(cosine(after, before), expected["cos_D_D0"], tolerance["cos_D_D0"]);
  const at::Tensor updates = experts.w - std::pow(1.0 - config.lr * config.weight_decay, steps) * start;
  const at::Tensor gram = updates.matmul(updates.t());
  EXPECT_NEAR((gram.trace().pow(2) / gram.pow(2).sum()).item<double>(),
              expected["update_participation_ratio"], tolerance["update_participation_ratio"]);
}

INSTANTIATE_TEST_SUITE_P(AdamW, FrozenDifference,
                         testing::Values("adam_equal", "adam_equal_decoupled_decay", "adam_unequal_constant",
                                         "adam_time_varying"),
                         [](const auto& parameter) { return std::string(parameter.param); });

}  // namespace
}  // namespace exfusion
