#include "observe/virtual_scores.h"

#include <cmath>

#include "observed_model.h"

namespace exfusion {
namespace {

using nlohmann::json;

// The small FFN of the published vectors, with its tokens.
struct VectorFfn {
  VectorFfn() : file(analysis_vectors("d3_virtual_router")), expected(file["cases"][1]["expected"]) {
    const json& setup = file["setup"];
    set.a = setup["a"].get<std::vector<double>>();
    set.experts = {tensor_of(setup["W1"]), tensor_of(setup["b1"]), tensor_of(setup["W2"]),
                   tensor_of(setup["b2"])};
    const FfnTensors w = fused_tensors(set);
    tokens.x = tensor_of(setup["x"]);
    const at::Tensor before = at::linear(tokens.x, w[0], w[1]).requires_grad_();
    tokens.activated = at::gelu(before);
    const at::Tensor y = at::linear(tokens.activated, w[2], w[3]), target = tensor_of(setup["target"]);
    (0.5 * (y - target).square().sum()).backward();
    tokens.activated = tokens.activated.detach();
    tokens.delta1 = before.grad();
    tokens.delta2 = (y - target).detach();
    tokens.growth = at::zeros({tokens.x.size(0)}, at::kDouble);
    tokens.label = tensor_of(setup["label"]).to(at::kLong);
    tokens.image = at::arange(tokens.size());
  }
  json file, expected;
  FusedSet set;
  FfnTokens tokens;
};

TEST(DirectionScores, AreThePublishedOnes) {
  const VectorFfn ffn;
  const at::Tensor scores = direction_scores(ffn.tokens, offsets(ffn.set));
  EXPECT_LT(largest_difference(scores, tensor_of(ffn.expected["s"])), 1e-11);
  EXPECT_EQ(values_of(preferred_experts(scores)), ffn.expected["argmax_s"].get<std::vector<double>>());
}

TEST(VirtualScores, CountAndAverageByClassAsPublished) {
  const VectorFfn ffn;
  VirtualScoreSums sums(ffn.set, 1, 2);
  sums.add(ffn.tokens);
  const VirtualScores found = sums.finish();
  EXPECT_EQ(found.table, values_of(tensor_of(ffn.expected["table_argmax_by_class"])));
  const std::vector<double> means = values_of(tensor_of(ffn.expected["S_class"]));
  for (std::size_t i = 0; i < means.size(); ++i) EXPECT_NEAR(found.class_score[i], means[i], 1e-11);
  EXPECT_EQ(found.tokens, std::vector<double>{6.0});
  EXPECT_EQ(found.load, (std::vector<double>{1.0, 0.0, 5.0}));
  EXPECT_EQ(found.ties, std::vector<double>{0.0});
}

TEST(DirectionScores, AddUpToZeroWithTheWeightsOfTheExperts) {
  const VectorFfn ffn;
  const at::Tensor a = at::tensor(ffn.set.a, at::kDouble);
  EXPECT_LT(at::mv(direction_scores(ffn.tokens, offsets(ffn.set)), a).abs().max().item<double>(), 1e-12);
  const FfnTensors random = random_directions(offsets(ffn.set), ffn.set.a, 3, 0);
  EXPECT_LT(at::mv(direction_scores(ffn.tokens, random), a).abs().max().item<double>(), 1e-5);
}

// The loss along W + eps D_k, in double precision, through the whole model.
TEST(DirectionScores, AreTheDerivativeOfTheLossTowardsTheExpert) {
  const auto model = small_model();
  model->to(at::kDouble);
  const auto sets = small_sets(*model);
  const HeldOutBatch batch = small_batch(3, 2, at::kDouble);
  const auto blocks = observe_tokens(*model, batch);
  const at::NoGradGuard no_grad;
  for (const FusedSet& set : sets) {
    const FfnTensors directions = offsets(set),
                     w = find_ffns(*model)[static_cast<std::size_t>(set.block)].ffn->parameters_in_order();
    const FfnTokens& tokens = blocks[static_cast<std::size_t>(set.block)].parts[0];
    const at::Tensor scores = direction_scores(tokens, directions);
    for (std::int64_t k = 0; k < set.size(); ++k) {
      constexpr double kStep = 1e-5;
      const auto losses_at = [&](double step) {
        for (std::size_t t = 0; t < w.size(); ++t) w[t].add_(directions[t].select(0, k), step);
        const at::Tensor losses =
            at::cross_entropy_loss(model->forward(batch.images, {}), batch.labels, {}, at::Reduction::None);
        for (std::size_t t = 0; t < w.size(); ++t) w[t].sub_(directions[t].select(0, k), step);
        return losses;
      };
      const at::Tensor slope = (losses_at(kStep) - losses_at(-kStep)) / (2.0 * kStep);
      const at::Tensor of_images =
          at::zeros({3}, at::kDouble).index_add(0, tokens.image, scores.select(1, k));
      EXPECT_LT(largest_difference(of_images, -slope), 1e-7) << set.name << " expert " << k;
      EXPECT_GT(slope.abs().max().item<double>(), 1e-3);
    }
  }
}

TEST(VirtualScores, AverageToTheClassGradientsProductWithTheOffset) {
  const auto model = small_model();
  model->to(at::kDouble);
  const auto sets = small_sets(*model);
  const HeldOutBatch batch = small_batch(8, 3, at::kDouble);
  VirtualScoreSums sums(sets[1], 1, kClasses);
  sums.add(observe_tokens(*model, batch)[1].parts[0]);
  const VirtualScores found = sums.finish();
  const FfnTensors directions = offsets(sets[1]);
  const auto parameters = find_ffns(*model)[1].ffn->parameters_in_order();
  for (std::int64_t c = 0; c < kClasses; ++c) {
    const at::Tensor rows = (batch.labels == c).nonzero().select(1, 0);
    model->zero_grad();
    at::cross_entropy_loss(model->forward(batch.images.index_select(0, rows), {}),
                           batch.labels.index_select(0, rows))
        .backward();
    const double tokens_per_image = 4.0;  // means over tokens, not images
    for (std::int64_t k = 0; k < 3; ++k) {
      double product = 0.0;
      for (std::size_t t = 0; t < parameters.size(); ++t)
        product += (parameters[t].grad() * directions[t].select(0, k)).sum().item<double>();
      EXPECT_NEAR(found.class_score[static_cast<std::size_t>(k * kClasses + c)], -product / tokens_per_image,
                  1e-9);
    }
  }
}

TEST(ObserveTokens, LeavesOutWhatTheLossDoesNotSee) {
  const auto model = small_model("dense", "token");
  const auto blocks = observe_tokens(*model, small_batch(3, 2));
  EXPECT_EQ(blocks[0].parts[0].size(), 3 * 5);
  EXPECT_EQ(blocks[1].parts[0].size(), 3);
  EXPECT_EQ(values_of(blocks[1].parts[0].image), (std::vector<double>{0, 1, 2}));
}

TEST(VirtualScores, OfEqualExpertsAreTies) {
  const auto model = small_model();
  auto sets = small_sets(*model, 0.0);
  sets[0].a = {1.0 / 3, 1.0 / 3, 1.0 / 3};  // not exact: rounding alone must not decide
  VirtualScoreSums sums(sets[0], 1, kClasses);
  const FfnTokens tokens = observe_tokens(*model, small_batch(8, 2))[0].parts[0];
  sums.add(tokens);
  const VirtualScores found = sums.finish();
  EXPECT_EQ(found.ties[0], static_cast<double>(tokens.size()));
  EXPECT_EQ(found.load, std::vector<double>(3, 0.0));
  EXPECT_TRUE(std::isnan(found.nmi));
  EXPECT_FALSE(found.random.z.defined());
}

TEST(RandomDirections, HaveTheNormsOfTheOffsetsAndAreOthersEachTime) {
  FusedSet set;
  set.a = {0.0, 0.0, 0.0};  // nothing to subtract
  const auto generator = at::detail::createCPUGenerator(3);
  set.experts = {at::randn({3, kHidden, kDim}, generator), at::randn({3, kHidden}, generator),
                 at::randn({3, kDim, kHidden}, generator), at::randn({3, kDim}, generator)};
  const FfnTensors first = random_directions(set.experts, set.a, 0, 0),
                   again = random_directions(set.experts, set.a, 0, 0),
                   second = random_directions(set.experts, set.a, 1, 0),
                   block = random_directions(set.experts, set.a, 0, 1);
  for (std::size_t t = 0; t < first.size(); ++t) {
    EXPECT_LT(largest_difference(first[t].flatten(1).norm(2, 1), set.experts[t].flatten(1).norm(2, 1)), 1e-4);
    EXPECT_TRUE(at::equal(first[t], again[t]));
    EXPECT_FALSE(at::equal(first[t], second[t]));
    EXPECT_FALSE(at::equal(first[t], block[t]));
  }
}

// Class c needs the linear map A_c; the second layer alone differs between experts.
struct Planted {
  explicit Planted(std::uint64_t seed) : generator(at::detail::createCPUGenerator(seed)) {
    maps = tensor_of(analysis_vectors("d3_planted")["setup"]["A"]);
  }
  VirtualScores scores(const at::Tensor& experts, std::int64_t count, bool shuffled = false) {
    const at::Tensor none = at::zeros({4, 8, 8}, at::kDouble), bias = at::zeros({4, 8}, at::kDouble);
    set.experts = {none, bias, experts, bias};
    const at::Tensor x = at::randn({count, 8}, generator, at::kDouble);
    const at::Tensor label = at::randint(4, {count}, generator, at::kLong);
    const at::Tensor target = at::matmul(maps.index_select(0, label), x.unsqueeze(2)).squeeze(2) +
                              0.5 * at::randn({count, 8}, generator, at::kDouble);
    const at::Tensor shown = shuffled ? at::randint(4, {count}, generator, at::kLong) : label;
    const FfnTokens tokens{x,
                           x,
                           at::zeros_like(x),
                           at::mm(x, experts.mean(0).t()) - target,
                           at::zeros({count}),
                           at::arange(count),
                           shown};
    VirtualScoreSums sums(set, 1, 4);
    sums.add(tokens);
    return sums.finish();
  }
  at::Generator generator;
  at::Tensor maps;
  FusedSet set{"planted", 0, {}, {0.25, 0.25, 0.25, 0.25}};
};

TEST(VirtualScores, FindPlantedSpecialists) {
  Planted planted(1);
  const VirtualScores found = planted.scores(planted.maps, 2000);
  EXPECT_GT(found.nmi, 0.85);
  EXPECT_GT(found.random.z.value, 3.0);
  EXPECT_GT(found.shuffle.z.value, 3.0);
  for (std::size_t k = 0; k < 4; ++k) {
    const auto row = found.table.begin() + static_cast<std::ptrdiff_t>(4 * k);
    EXPECT_EQ(std::max_element(row, row + 4) - row, static_cast<std::ptrdiff_t>(k));
  }
}

TEST(VirtualScores, DoNotFindSpecialistsInRandomOffsets) {
  Planted planted(2);
  const at::Tensor experts =
      planted.maps.mean(0) + 0.3 * at::randn({4, 8, 8}, planted.generator, at::kDouble);
  const VirtualScores found = planted.scores(experts, 1000);
  EXPECT_LT(found.nmi, 0.2);
  EXPECT_NEAR(found.random.mean.value, 0.052, 0.04);
  EXPECT_LT(std::abs(found.random.z.value), 3.5);
}

TEST(VirtualScores, OfShuffledLabelsShowNothing) {
  Planted planted(3);
  const VirtualScores found = planted.scores(planted.maps, 2000, /*shuffled=*/true);
  EXPECT_LT(found.nmi, 0.02);
  EXPECT_LT(std::abs(found.shuffle.z.value), 3.5);
}

}  // namespace
}  // namespace exfusion
