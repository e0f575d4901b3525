#include "observe/fused_functions.h"

#include <cmath>

#include "observed_model.h"

namespace exfusion {
namespace {

using nlohmann::json;

at::Tensor activated(const at::Tensor& x, const std::string& activation) {
  return activation == "relu" ? at::relu(x) : x;
}

TEST(CompareOutputs, GivesThePublishedGapsAndDiversities) {
  const json file = analysis_vectors("d4_fusion_gap"), &setup = file["setup"];
  const at::Tensor x = tensor_of(setup["x"]);
  for (const json& one : file["cases"]) {
    SCOPED_TRACE(one["name"].get<std::string>());
    const double noise = one["inputs"]["noise"];
    const std::string activation = one["inputs"].value("activation", "relu");
    const bool shared = one["inputs"].contains("second_layer");
    const at::Tensor w1 = tensor_of(setup["B1"]) + noise * tensor_of(setup["Z1"]),
                     w2 = tensor_of(setup["B2"]) + (shared ? 0.0 : 0.3 * noise) * tensor_of(setup["Z2"]);
    const auto output = [&](const at::Tensor& first, const at::Tensor& second) {
      return at::mm(activated(at::mm(x, first.t()), activation), second.t());
    };
    std::vector<at::Tensor> outputs;
    for (std::int64_t k = 0; k < 4; ++k) outputs.push_back(output(w1[k], w2[k]));
    const FunctionDifference found =
        compare_outputs(at::stack(outputs), output(w1.mean(0), w2.mean(0)), std::vector<double>(4, 0.25));
    EXPECT_NEAR(found.fusion_gap, one["expected"]["fusion_gap"].get<double>(),
                one["tolerance"]["fusion_gap"].get<double>());
    EXPECT_NEAR(found.diversity, one["expected"]["functional_diversity"].get<double>(),
                one["tolerance"]["functional_diversity"].get<double>());
  }
}

TEST(CompareFunctions, IsZeroForCopiesAndGrowsWithTheDifferences) {
  const auto model = small_model();
  const at::Tensor x = at::randn({20, kDim}, at::detail::createCPUGenerator(4));
  const FunctionDifference copies = compare_functions(small_sets(*model, 0.0)[0], x);
  EXPECT_LT(copies.diversity, 1e-6);
  EXPECT_LT(copies.fusion_gap, 1e-6);
  const FunctionDifference near = compare_functions(small_sets(*model, 0.02)[0], x),
                           far = compare_functions(small_sets(*model, 0.2)[0], x);
  EXPECT_NEAR(far.diversity / near.diversity, 10.0, 5.0);      // first order
  EXPECT_NEAR(far.fusion_gap / near.fusion_gap, 100.0, 80.0);  // second order
}

TEST(FusedGeometry, GivesThePublishedNumbers) {
  const json one = analysis_vectors("d4_shares_prices")["cases"][0];
  const auto a = one["inputs"]["a"].get<std::vector<double>>();
  const at::Tensor w = tensor_of(one["inputs"]["W"]).flatten(1),
                   d = w - at::mv(w.t(), at::tensor(a, at::kDouble));
  const FusedGeometry found = fused_geometry(a, at::mm(w, w.t()), at::mm(d, d.t()));
  const std::vector<double> share = one["expected"]["rho"];
  for (std::size_t k = 0; k < share.size(); ++k) EXPECT_NEAR(found.share[k], share[k], 1e-11);
  EXPECT_NEAR(found.n_eff_a, one["expected"]["N_eff_a"].get<double>(), 1e-11);
  EXPECT_NEAR(found.n_eff_share, one["expected"]["N_eff_rho"].get<double>(), 1e-11);
  EXPECT_NEAR(found.diversity_ratio, one["expected"]["diversity_ratio"].get<double>(), 1e-11);
}

TEST(FusedGeometry, SharesDoNotChangeWhenWeightsTakeOverAFactorOfAnExpert) {
  const json one = analysis_vectors("d4_shares_prices")["cases"][0];
  auto a = one["inputs"]["a"].get<std::vector<double>>();
  at::Tensor w = tensor_of(one["inputs"]["W"]).flatten(1).clone();
  const auto factors = one["inputs"]["c"].get<std::vector<double>>();
  for (std::size_t k = 0; k < a.size(); ++k) {
    a[k] *= factors[k];
    w[static_cast<std::int64_t>(k)] /= factors[k];
  }
  const FusedGeometry found = fused_geometry(a, at::mm(w, w.t()), at::eye(5, at::kDouble));
  EXPECT_NEAR(found.n_eff_share, one["expected"]["N_eff_rho_after_rescaling"].get<double>(), 1e-11);
  EXPECT_NEAR(found.n_eff_a, one["expected"]["N_eff_a_after_rescaling"].get<double>(), 1e-11);
}

// The common part makes experts look alike; their offsets tell them apart.
TEST(FusedGeometry, CosinesOfOffsetsLeaveOutTheCommonPart) {
  const auto model = small_model();
  const FusedGeometry found = fused_geometry(small_sets(*model, 0.01)[0]);
  EXPECT_GT(found.weight_cosine[1], 0.99);
  EXPECT_LT(found.offset_cosine[1], 0.5);
  EXPECT_NEAR(found.offset_cosine[0], 1.0, 1e-9);
}

TEST(FusedGeometry, OfCopiesHasNoOffsetsToCompare) {
  const auto model = small_model();
  auto sets = small_sets(*model, 0.0);
  sets[0].a = {1.0 / 3, 1.0 / 3, 1.0 / 3};
  const FusedGeometry found = fused_geometry(sets[0]);
  EXPECT_EQ(found.diversity_ratio, 0.0);
  EXPECT_TRUE(std::isnan(found.offset_cosine[1]));
  EXPECT_NEAR(found.weight_cosine[1], 1.0, 1e-6);
}

}  // namespace
}  // namespace exfusion
