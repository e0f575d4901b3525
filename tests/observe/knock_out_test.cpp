#include "observe/knock_out.h"

#include <ATen/ATen.h>

#include <cmath>
#include <stdexcept>

#include "analysis/vectors.h"
#include "core/recipe.h"
#include "models/model.h"
#include "nn/block.h"
#include "nn/topk_ffn.h"
#include "observe/weight_perturbation.h"

namespace exfusion {
namespace {

constexpr std::int64_t kClasses = 5;

std::shared_ptr<Model> tiny_model(const std::string& ffn) {
  auto recipe = Recipe::parse(
      "model: {arch: vit, dim: 12, depth: 3, heads: 3, patch: 7, image: 14, channels: 1, classes: 5, ffn: " +
          ffn + "}\n",
      "r.yaml");
  const auto config = ModelConfig::parse(recipe.root().child("model"));
  recipe.finish();
  const auto model = make_model(config, 1);
  const at::NoGradGuard no_grad;
  auto generator = at::detail::createCPUGenerator(1);
  for (auto& [name, tensor] : model_tensors(*model)) {
    if (name.find("selection_bias") == std::string::npos)
      tensor.add_(at::randn(tensor.sizes(), generator), 0.4);
  }
  model->eval();
  return model;
}

std::vector<HeldOutBatch> some_batches() {
  auto generator = at::detail::createCPUGenerator(2);
  std::vector<HeldOutBatch> batches;
  for (const std::int64_t n : {7, 7, 3})
    batches.push_back({at::randn({n, 1, 14, 14}, generator), at::randint(kClasses, {n}, generator)});
  return batches;
}

// A tensor of the model, to be written.
at::Tensor tensor_of(const Model& model, const std::string& name) {
  for (const auto& [found, tensor] : model_tensors(model)) {
    if (found == name) return tensor;
  }
  throw std::out_of_range(name);
}

// Per batch and class, the loss of `changed` less that of `model`, both run as a whole.
std::vector<double> loss_difference(Model& changed, Model& model, const std::vector<HeldOutBatch>& batches) {
  const at::NoGradGuard no_grad;
  std::vector<double> sums;
  for (const HeldOutBatch& batch : batches) {
    const at::Tensor targets = at::one_hot(batch.labels, kClasses).to(at::kDouble);
    const auto loss = [&](Model& of) {
      return -of.forward(batch.images, {}).to(at::kDouble).log_softmax(1).mul(targets).sum(0);
    };
    const at::Tensor difference = loss(changed) - loss(model);
    sums.insert(sums.end(), difference.const_data_ptr<double>(),
                difference.const_data_ptr<double>() + kClasses);
  }
  return sums;
}

// The same model with one expert fewer in block `block`, built from scratch.
std::shared_ptr<Model> pruned(const Model& model, const std::string& ffn, int block, std::int64_t expert) {
  const auto smaller = tiny_model(ffn);
  const at::NoGradGuard no_grad;
  const std::string place = "blocks." + std::to_string(block) + ".mlp.";
  for (auto& [name, tensor] : model_tensors(*smaller)) {
    const at::Tensor from = tensor_of(model, name);
    if (!name.starts_with(place)) continue;
    std::vector<at::Tensor> rows = from.unbind(0);
    rows.erase(rows.begin() + expert);
    tensor.copy_(at::stack(rows));
  }
  for (auto& [name, tensor] : model_tensors(*smaller)) {
    if (!name.starts_with(place)) tensor.copy_(tensor_of(model, name));
  }
  return smaller;
}

void expect_all_zero(const analysis::ImageSums& sums) {
  for (const double one : sums.loss) EXPECT_EQ(one, 0.0);
  for (const double one : sums.correct) EXPECT_EQ(one, 0.0);
}

TEST(KnockOut, ATopKExpertTakenOutIsAModelBuiltWithoutIt) {
  for (const std::string bias : {"", ", bias_balance: 0.1"}) {
    const auto model = tiny_model("{name: topk, experts: 4, top_k: 2, layers: [1]" + bias + "}");
    // A favoured expert must not come back once it is out.
    if (!bias.empty()) tensor_of(*model, "blocks.1.mlp.selection_bias").copy_(at::tensor({0., 2., 0., -.1}));
    const auto batches = some_batches();
    const KnockOuts found = knock_out_topk(*model, batches, kClasses);
    ASSERT_EQ(found.ffns.size(), 1u);
    EXPECT_EQ(found.ffns[0].block, 1);
    for (std::int64_t k = 0; k < 4; ++k) {
      const auto without =
          pruned(*model, "{name: topk, experts: 3, top_k: 2, layers: [1]" + bias + "}", 1, k);
      const auto expected = loss_difference(*without, *model, batches);
      analysis::expect_near(found.ffns[0].left_out[static_cast<std::size_t>(k)].loss, expected, 2e-5);
    }
  }
}

TEST(KnockOut, ImagesAndTheModelAsItIsAreCountedByBatchAndClass) {
  const auto model = tiny_model("{name: topk, experts: 3, layers: [0, 2]}");
  const auto batches = some_batches();
  const KnockOuts found = knock_out_topk(*model, batches, kClasses);
  ASSERT_EQ(found.ffns.size(), 2u);
  EXPECT_EQ(found.ffns[1].block, 2);
  ASSERT_EQ(found.held_out.images.size(), 3u * kClasses);
  for (std::size_t b = 0; b < batches.size(); ++b) {
    const at::Tensor hits = model->forward(batches[b].images, {}).argmax(1).eq(batches[b].labels);
    for (std::int64_t c = 0; c < kClasses; ++c) {
      const at::Tensor of_class = batches[b].labels.eq(c);
      const std::size_t i = b * kClasses + static_cast<std::size_t>(c);
      EXPECT_EQ(found.held_out.images[i], of_class.sum().item<double>());
      EXPECT_EQ(found.held_out.model.correct[i], hits.logical_and(of_class).sum().item<double>());
    }
  }
}

TEST(KnockOut, AnExpertThatNoTokenChoosesChangesNothing) {
  const auto model = tiny_model("{name: topk, experts: 4, top_k: 2, layers: [1], renormalize: false}");
  const at::NoGradGuard no_grad;
  tensor_of(*model, "blocks.1.mlp.router.weight").zero_();  // ties go to the lower number
  const KnockOuts found = knock_out_topk(*model, some_batches(), kClasses);
  expect_all_zero(found.ffns[0].left_out[2]);
  expect_all_zero(found.ffns[0].left_out[3]);
  double change = 0.0;
  for (const double one : found.ffns[0].left_out[0].loss) change += std::abs(one);
  EXPECT_GT(change, 1e-3);
}

TEST(KnockOut, TheOnlyExpertCannotBeTakenOut) {
  const auto model = tiny_model("{name: topk, experts: 1, top_k: 1, layers: [1]}");
  const KnockOuts found = knock_out_topk(*model, some_batches(), kClasses);
  EXPECT_EQ(found.ffns[0].undefined[0], "the only expert");
  EXPECT_TRUE(found.ffns[0].left_out[0].loss.empty());
}

// ---- fused experts

constexpr const char* kNames[] = {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"};

// Experts around the FFN of a block whose sum with weights a is that FFN.
FusedSet set_around(const Model& model, std::int64_t block, std::vector<double> a, double spread) {
  FusedSet set;
  set.name = "blocks." + std::to_string(block) + ".mlp";
  set.block = block;
  set.a = std::move(a);
  auto generator = at::detail::createCPUGenerator(static_cast<std::uint64_t>(block + 5));
  for (std::size_t t = 0; t < 4; ++t) {
    const at::Tensor w = tensor_of(model, set.name + "." + kNames[t]).to(at::kDouble);
    std::vector<at::Tensor> experts;
    at::Tensor sum = at::zeros_like(w);
    for (const double one : set.a) {
      experts.push_back(spread * at::randn(w.sizes(), generator, w.options()));
      sum += one * experts.back();
    }
    for (at::Tensor& expert : experts) expert += w - sum;
    set.experts[t] = at::stack(experts).to(at::kFloat);
  }
  return set;
}

// The dense model with other tensors in one FFN.
std::shared_ptr<Model> with_ffn(const Model& model, const std::string& name, const FfnTensors& tensors) {
  const auto changed = tiny_model("none");
  const at::NoGradGuard no_grad;
  for (auto& [tensor_name, tensor] : model_tensors(*changed)) tensor.copy_(tensor_of(model, tensor_name));
  for (std::size_t t = 0; t < 4; ++t) tensor_of(*changed, name + "." + kNames[t]).copy_(tensors[t]);
  return changed;
}

TEST(KnockOut, AFusedExpertLeftOutOrAloneIsTheDenseModelOfThoseWeights) {
  const auto model = tiny_model("none");
  const auto batches = some_batches();
  const std::vector<FusedSet> sets = {set_around(*model, 0, {0.5, 0.2, 0.3}, 0.3),
                                      set_around(*model, 2, {0.6, 0.3, 0.1}, 0.3)};
  const KnockOuts found = knock_out_fused(*model, sets, batches, kClasses);
  ASSERT_EQ(found.ffns.size(), 2u);
  for (std::size_t s = 0; s < 2; ++s) {
    for (std::size_t k = 0; k < 3; ++k) {
      FfnTensors without, alone, scaled;
      double norm_w = 0.0, norm_k = 0.0;
      for (std::size_t t = 0; t < 4; ++t) {
        const at::Tensor w = tensor_of(*model, sets[s].name + "." + kNames[t]).to(at::kDouble);
        alone[t] = sets[s].experts[t].select(0, static_cast<std::int64_t>(k));
        without[t] = (w - sets[s].a[k] * alone[t].to(at::kDouble)) / (1.0 - sets[s].a[k]);
        norm_w += w.square().sum().item<double>();
        norm_k += alone[t].to(at::kDouble).square().sum().item<double>();
      }
      for (std::size_t t = 0; t < 4; ++t) scaled[t] = alone[t] * std::sqrt(norm_w / norm_k);
      const auto expect = [&](const analysis::ImageSums& sums, const FfnTensors& tensors) {
        const auto changed = with_ffn(*model, sets[s].name, tensors);
        analysis::expect_near(sums.loss, loss_difference(*changed, *model, batches), 5e-5);
      };
      expect(found.ffns[s].left_out[k], without);
      expect(found.ffns[s].alone[k], alone);
      expect(found.ffns[s].alone_scaled[k], scaled);
    }
  }
  // Expert 1 in both FFNs.
  FfnTensors first, second;
  for (std::size_t t = 0; t < 4; ++t) {
    first[t] = sets[0].experts[t].select(0, 1);
    second[t] = sets[1].experts[t].select(0, 1);
  }
  const auto both = with_ffn(*with_ffn(*model, sets[0].name, first), sets[1].name, second);
  analysis::expect_near(found.alone_everywhere[1].loss, loss_difference(*both, *model, batches), 5e-5);
}

TEST(KnockOut, CopiesOfOneExpertChangeNothing) {
  const auto model = tiny_model("none");
  const FusedSet set = set_around(*model, 1, {1.0 / 3, 1.0 / 3, 1.0 / 3}, 0.0);
  const KnockOuts found = knock_out_fused(*model, {set}, some_batches(), kClasses);
  for (const auto& one : found.ffns[0].left_out) expect_all_zero(one);
  ASSERT_EQ(found.ffns[0].random.size(), static_cast<std::size_t>(kRandomPerturbations));
  for (const auto& one : found.ffns[0].random) expect_all_zero(one);
}

TEST(KnockOut, AnExpertWithAllOfTheWeightCannotBeLeftOutButStandsAlone) {
  const auto model = tiny_model("none");
  const KnockOuts found =
      knock_out_fused(*model, {set_around(*model, 1, {1.0, 0.0}, 0.2)}, some_batches(), kClasses);
  EXPECT_EQ(found.ffns[0].undefined[0], "the expert has all of the weight");
  EXPECT_TRUE(found.ffns[0].left_out[0].loss.empty());
  EXPECT_EQ(found.ffns[0].undefined[1], "");
  expect_all_zero(found.ffns[0].left_out[1]);  // its weight is 0
  for (const double one : found.ffns[0].alone[0].loss) EXPECT_NEAR(one, 0.0, 1e-5);
}

TEST(KnockOut, ProgressRisesToOneAndMayStopTheWork) {
  const auto model = tiny_model("{name: topk, experts: 3}");
  model->train();
  std::vector<double> seen;
  knock_out_topk(*model, some_batches(), kClasses, [&](double part) { seen.push_back(part); });
  EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
  EXPECT_DOUBLE_EQ(seen.back(), 1.0);
  const auto stop = [](double) { throw std::runtime_error("stopped"); };
  EXPECT_THROW(knock_out_topk(*model, some_batches(), kClasses, stop), std::runtime_error);
  EXPECT_TRUE(model->is_training());
}

TEST(WeightPerturbation, StepsAreThePublishedOnes) {
  for (const char* name : {"five_experts", "copies"}) {
    const auto one = analysis::vector_case("d4_leave_one_out", name);
    FusedSet set;
    set.a = analysis::numbers(one.at("inputs").at("a"));
    std::vector<at::Tensor> experts;
    for (const auto& matrix : one.at("inputs").at("W"))
      experts.push_back(at::tensor(analysis::table(matrix), at::kDouble).view({4, 4}));
    set.experts.fill(at::stack(experts));
    const FfnTensors differences = offsets(set);
    std::vector<double> norms;
    for (std::int64_t k = 0; k < static_cast<std::int64_t>(set.a.size()); ++k)
      norms.push_back(
          step_without(differences, set.a[static_cast<std::size_t>(k)], k)[0].norm().item<double>());
    analysis::expect_key(one, "norm_Wbar_minus_k_minus_Wbar", norms);
  }
}

TEST(WeightPerturbation, RandomStepsHaveTheSingularValuesAndNoDirectionInCommon) {
  const auto model = tiny_model("none");
  const FfnTensors step = step_without(offsets(set_around(*model, 0, {0.4, 0.6}, 0.3)), 0.4, 0);
  const FfnTensors one = random_step_like(step, 0, 0), two = random_step_like(step, 0, 1);
  for (std::size_t t = 0; t < 4; ++t) {
    EXPECT_NEAR(one[t].norm().item<double>(), step[t].norm().item<double>(), 1e-9);
    EXPECT_TRUE(step[t].dim() == 1 ||
                at::allclose(at::linalg_svdvals(one[t]), at::linalg_svdvals(step[t]), 1e-9, 1e-12));
    const auto cosine = [&](const at::Tensor& a, const at::Tensor& b) {
      return (a * b).sum().item<double>() / (a.norm() * b.norm()).item<double>();
    };
    EXPECT_LT(std::abs(cosine(one[t], step[t])), 0.6);
    EXPECT_LT(std::abs(cosine(one[t], two[t])), 0.6);
  }
  EXPECT_TRUE(at::equal(one[0], random_step_like(step, 0, 0)[0]));
  EXPECT_FALSE(at::equal(one[0], random_step_like(step, 1, 0)[0]));
}

}  // namespace
}  // namespace exfusion
