#include "observe/observation.h"

#include <algorithm>
#include <cmath>

#include "observed_model.h"

namespace exfusion {
namespace {

const AnalysisConfig kAll{.groups = analysis_group_names()};

std::size_t cells(const ObservedColumn& column) {
  std::size_t count = 1;
  for (const std::int64_t size : column.shape) count *= static_cast<std::size_t>(size);
  return count;
}

void expect_same_shapes(const std::vector<ObservedGroup>& found, const std::vector<ObservedGroup>& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t g = 0; g < found.size(); ++g) {
    EXPECT_EQ(found[g].path, expected[g].path);
    ASSERT_EQ(found[g].columns.size(), expected[g].columns.size()) << found[g].path;
    for (std::size_t c = 0; c < found[g].columns.size(); ++c) {
      const ObservedColumn &one = found[g].columns[c], &other = expected[g].columns[c];
      const std::string name = found[g].path + "/" + one.name;
      EXPECT_EQ(one.name, other.name);
      EXPECT_EQ(one.shape, other.shape) << name;
      EXPECT_EQ(one.headline, other.headline) << name;
      EXPECT_EQ(one.values.size(), cells(one)) << name;
      EXPECT_EQ(other.values.size(), cells(other)) << name;
    }
  }
}

std::vector<HeldOutBatch> two_batches() {
  return {small_batch(8, 2), small_batch(6, 3)};
}

bool has(const std::vector<ObservedGroup>& groups, const std::string& path) {
  return std::ranges::find(groups, path, &ObservedGroup::path) != groups.end();
}

// Files need to know the columns before there is anything to look at.
TEST(Observation, WithoutBatchesHasTheSameColumns) {
  for (const std::string ffn : {"dense", "topk", "smear"}) {
    SCOPED_TRACE(ffn);
    const auto model = small_model(ffn);
    const auto sets = ffn == "dense" ? small_sets(*model) : std::vector<FusedSet>{};
    expect_same_shapes(observe_model(*model, sets, {}, kAll, {3, kClasses}),
                       observe_model(*model, sets, two_batches(), kAll, {3, kClasses}));
  }
}

TEST(Observation, SeesEachKindOfModel) {
  const auto fused = small_model(), sparse = small_model("topk");
  const auto of_fused = observe_model(*fused, small_sets(*fused), two_batches(), kAll, {2, kClasses}),
             of_dense = observe_model(*fused, {}, two_batches(), kAll, {2, kClasses}),
             of_sparse = observe_model(*sparse, {}, two_batches(), kAll, {2, kClasses});
  EXPECT_TRUE(has(of_fused, "fused/layer_001"));
  EXPECT_FALSE(has(of_dense, "fused/layer_001"));
  for (const auto& groups : {of_fused, of_dense, of_sparse})
    EXPECT_TRUE(has(groups, "interference/layer_000"));
  EXPECT_TRUE(observe_model(*fused, {}, two_batches(), AnalysisConfig{}, {2, kClasses}).empty());
}

TEST(Observation, OfShardedExpertsHasNoNumbersOfTheirs) {
  const auto model = small_model();
  auto sets = small_sets(*model);
  const auto whole = observe_model(*model, sets, two_batches(), kAll, {2, kClasses});
  for (FusedSet& set : sets) set.experts = {};
  const auto found = observe_model(*model, sets, two_batches(), kAll, {2, kClasses});
  expect_same_shapes(found, whole);
  for (const ObservedColumn& column : found[0].columns) {
    if (column.name == "nmi" || column.name == "fusion_gap") {
      EXPECT_TRUE(std::isnan(column.values[0]));
    }
  }
}

// What the owners of the blocks find is what one rank finds alone; of other blocks there is nothing.
TEST(Observation, SharesOfRanksMakeUpTheWhole) {
  for (const std::string ffn : {"dense", "topk"}) {
    const auto model = small_model(ffn);
    const auto sets = ffn == "dense" ? small_sets(*model) : std::vector<FusedSet>{};
    const auto whole = observe_model(*model, sets, two_batches(), kAll, {2, kClasses});
    for (std::int64_t rank = 0; rank < 3; ++rank) {
      const BlockShare share{rank, 3};
      const auto found = observe_model(*model, sets, two_batches(), kAll, {2, kClasses}, share);
      expect_same_shapes(found, whole);
      for (std::size_t g = 0; g < found.size(); ++g) {
        for (std::size_t c = 0; c < found[g].columns.size(); ++c) {
          const ObservedColumn &one = found[g].columns[c], &other = whole[g].columns[c];
          for (std::size_t i = 0; i < one.values.size() && share.has(found[g].block); ++i)
            EXPECT_TRUE(one.values[i] == other.values[i] ||
                        (std::isnan(one.values[i]) && std::isnan(other.values[i])))
                << found[g].path << "/" << one.name;
          if (one.name == "kappa" && !share.has(found[g].block)) {
            EXPECT_TRUE(std::isnan(one.values[0]));
          }
        }
      }
    }
  }
}

TEST(Observation, LeavesTheModelAsItWasAndSaysTheSameAgain) {
  const auto model = small_model();
  const auto sets = small_sets(*model);
  model->train();
  const at::Tensor images = small_batch(4, 9).images;
  const at::Tensor before = model->forward(images, {}).detach();
  const auto first = observe_model(*model, sets, two_batches(), kAll, {2, kClasses}),
             second = observe_model(*model, sets, two_batches(), kAll, {2, kClasses});
  EXPECT_TRUE(model->is_training());
  EXPECT_TRUE(at::equal(model->forward(images, {}).detach(), before));
  for (const at::Tensor& parameter : model->parameters()) EXPECT_FALSE(parameter.grad().defined());
  for (std::size_t g = 0; g < first.size(); ++g) {
    for (std::size_t c = 0; c < first[g].columns.size(); ++c) {
      const auto &one = first[g].columns[c].values, &other = second[g].columns[c].values;
      for (std::size_t i = 0; i < one.size(); ++i)
        EXPECT_TRUE(one[i] == other[i] || (std::isnan(one[i]) && std::isnan(other[i])));
    }
  }
}

}  // namespace
}  // namespace exfusion
