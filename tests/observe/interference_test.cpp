#include "observe/interference.h"

#include <cmath>

#include "observe/observed_blocks.h"
#include "observed_model.h"

namespace exfusion {
namespace {

using nlohmann::json;

TEST(Kappa, IsThePublishedOne) {
  for (const json& one : analysis_vectors("d2_kappa")["cases"]) {
    const at::Tensor gradients = tensor_of(one["inputs"]["class_gradients"]);
    EXPECT_NEAR(interference(gradients, gradients), one["expected"]["kappa"].get<double>(), 1e-12)
        << one["name"];
  }
}

// Noise of its own in each half takes no part in products.
TEST(Kappa, OfTwoHalvesIsNotPushedUpByNoise) {
  const auto generator = at::detail::createCPUGenerator(1);
  const at::Tensor aligned = at::randn({1, 2000}, generator, at::kDouble).expand({5, 2000});
  const auto noisy = [&] { return aligned + 2.0 * at::randn({5, 2000}, generator, at::kDouble); };
  const at::Tensor half = noisy(), other = noisy(), both = 0.5 * (half + other);
  EXPECT_NEAR(interference(half, other), 0.0, 0.1);
  EXPECT_GT(interference(both, both), 0.4);
}

TEST(Kappa, IsUndefinedWithoutGradients) {
  EXPECT_TRUE(std::isnan(interference(at::zeros({3, 4}), at::zeros({3, 4}))));
}

struct Observed {
  Interference found;
  double expected = 0.0;  // kappa_biased, from autograd's gradients
  std::vector<double> class_norms;
};

// Of block 1 over two batches; `parameters` are the tensors that kappa is about.
Observed observe(Model& model, const std::vector<at::Tensor>& parameters, std::int64_t parts) {
  Observed observed{Interference(kClasses, parts)};
  ClassGradients gradients(kClasses, parts, kDim, kHidden);
  const HeldOutBatch batches[] = {small_batch(8, 2), small_batch(8, 3)};
  for (const HeldOutBatch& batch : batches) gradients.add(observe_tokens(model, batch)[1], batch.labels);
  observed.found = gradients.finish();
  const ObservedBlocks evaluating(model);
  std::vector<at::Tensor> of_class;
  for (std::int64_t c = 0; c < kClasses; ++c) {
    model.zero_grad();
    for (const HeldOutBatch& batch : batches) {
      const at::Tensor rows = (batch.labels == c).nonzero().select(1, 0);
      (at::cross_entropy_loss(model.forward(batch.images.index_select(0, rows), {}),
                              batch.labels.index_select(0, rows), {}, at::Reduction::Sum) /
       4.0)  // two of a class in each batch
          .backward();
    }
    std::vector<at::Tensor> flat;
    for (const at::Tensor& parameter : parameters) flat.push_back(parameter.grad().reshape(-1).clone());
    of_class.push_back(at::cat(flat).to(at::kDouble));
    observed.class_norms.push_back(of_class.back().norm().item<double>());
  }
  const at::Tensor all = at::stack(of_class);
  observed.expected = interference(all, all);
  return observed;
}

void expect_as_autograd(const Observed& observed) {
  EXPECT_NEAR(observed.found.kappa_biased, observed.expected, 1e-4);
  for (std::size_t c = 0; c < observed.class_norms.size(); ++c)
    EXPECT_NEAR(observed.found.class_norm[c], observed.class_norms[c], 1e-4 * observed.class_norms[c]);
}

TEST(ClassGradients, OfADenseFfnAreThoseOfAutograd) {
  const auto model = small_model();
  const FfnTensors ffn = find_ffns(*model)[1].ffn->parameters_in_order();
  expect_as_autograd(observe(*model, {ffn.begin(), ffn.end()}, 1));
}

TEST(ClassGradients, OfASparseFfnAreThoseOfItsExperts) {
  const auto model = small_model("topk");
  std::vector<at::Tensor> experts;
  for (const auto& item : model->named_parameters()) {
    if (item.key().starts_with("blocks.1.mlp.experts.")) experts.push_back(item.value());
  }
  ASSERT_EQ(experts.size(), 4u);
  const Observed observed = observe(*model, experts, 3);
  expect_as_autograd(observed);
  EXPECT_EQ(observed.found.kappa_of_expert.size(), 3u);
}

TEST(ClassGradients, LeaveOutAClassThatOneHalfDoesNotHave) {
  const auto model = small_model();
  ClassGradients gradients(kClasses, 1, kDim, kHidden);
  HeldOutBatch first = small_batch(8, 2), second = small_batch(6, 3);
  second.labels = at::tensor({0, 1, 2, 0, 1, 2}, at::kLong);
  gradients.add(observe_tokens(*model, first)[0], first.labels);
  gradients.add(observe_tokens(*model, second)[0], second.labels);
  const Interference found = gradients.finish();
  EXPECT_FALSE(std::isnan(found.kappa_biased));
  EXPECT_GT(found.class_norm[3], 0.0);
  ClassGradients one_half(kClasses, 1, kDim, kHidden);
  one_half.add(observe_tokens(*model, first)[0], first.labels);
  EXPECT_TRUE(std::isnan(one_half.finish().kappa));
}

}  // namespace
}  // namespace exfusion
