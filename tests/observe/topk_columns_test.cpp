#include "observe/topk_columns.h"

#include <algorithm>
#include <cmath>

#include "analysis/layer_congestion.h"
#include "observe/lens.h"
#include "observe/topk_dynamics.h"
#include "topk_models.h"

namespace exfusion {
namespace {

const AnalysisConfig kTopkGroups{.groups = {"load", "congestion", "lens", "scores"}};

std::vector<double> column(const std::vector<ObservedGroup>& groups, const std::string& path,
                           const std::string& name) {
  const auto group = std::ranges::find(groups, path, &ObservedGroup::path);
  if (group == groups.end()) return {};
  const auto found = std::ranges::find(group->columns, name, &ObservedColumn::name);
  return found == group->columns.end() ? std::vector<double>{} : found->values;
}

TEST(TopkColumns, AreTheNumbersOfTheFunctionsTheyName) {
  const auto model = topk_model(topk_config(5, 2));
  const std::vector<HeldOutBatch> batches = random_batches({6, 6, 6, 6, 5});
  const auto groups = observe_model(*model, {}, batches, kTopkGroups, {6, kClasses});
  const TopkObservation of = observe_topk(*model, batches, kClasses, true);
  const TopkDynamics dynamics = topk_dynamics(of, 1, {});
  const analysis::LayerCongestion congestion = analysis::analyse_congestion(of.trace, of.trace.layers[1]);
  const std::vector<double> count = column(groups, "load/layer_001", "count");
  ASSERT_EQ(count.size(), 30u);  // a batch that is not there is NaN
  EXPECT_TRUE(std::equal(count.begin(), count.begin() + 25, of.trace.layers[1].count.begin()));
  EXPECT_TRUE(std::isnan(count[25]));
  EXPECT_EQ(column(groups, "load/layer_001", "information")[0], dynamics.information);
  EXPECT_EQ(column(groups, "load/layer_001", "max_violation")[0], dynamics.max_violation);
  EXPECT_EQ(column(groups, "load/layer_001", "coactivation_null_z")[0], dynamics.coactivation.z.value);
  EXPECT_EQ(column(groups, "load/layer_001", "functional_diversity")[0],
            expert_redundancy(*model, of.trace)[1].functional_diversity);
  const std::vector<double> routes = column(groups, "load/layer_001", "routes");
  ASSERT_EQ(routes.size(), 1024u);
  EXPECT_EQ(routes[7], static_cast<double>(of.sums[1].routes[7]));
  EXPECT_EQ(column(groups, "congestion/layer_001", "gamma_eff")[0], congestion.gamma_eff.value);
  EXPECT_EQ(column(groups, "congestion/layer_001", "gamma_excess")[0], congestion.gamma_excess.value);
  EXPECT_EQ(column(groups, "scores/layer_001", "sum_rsd"), of.sums[1].by_class.r);
  EXPECT_EQ(column(groups, "scores/layer_001", "sum_taylor"), of.sums[1].by_class.t1);
  EXPECT_EQ(column(groups, "lens/layer_001", "class_table"), of.sums[1].by_class.n);
  EXPECT_EQ(column(groups, "lens/layer_001", "nmi_router_z")[0],
            analysis::specialisation(of.trace, of.trace.layers[1]).router.z.value);
  EXPECT_EQ(column(groups, "lens/layer_001", "divergence")[0],
            observe_lens(*model, {}, batches, kClasses)[1].divergence);
  EXPECT_EQ(column(groups, "lens/gates", "loss_as_is")[0], observe_gate_sweep(*model, batches).as_is[0].loss);
}

TEST(TopkColumns, AreThoseOfTheGroupsAskedForAndNaNBeforeAnythingIsSeen) {
  const auto model = topk_model(topk_config(5, 2));
  const auto groups = observe_model(*model, {}, {}, AnalysisConfig{.groups = {"load"}}, {6, kClasses});
  ASSERT_EQ(groups.size(), 2u);
  for (const ObservedColumn& one : groups[1].columns) {
    if (one.name == "router_norm") continue;  // of the weights alone
    EXPECT_TRUE(std::ranges::all_of(one.values, [](double x) { return std::isnan(x); })) << one.name;
  }
  const auto others = observe_model(*model, {}, {}, AnalysisConfig{.groups = {"fused"}}, {6, kClasses});
  for (const ObservedGroup& group : others) EXPECT_TRUE(group.path.starts_with("interference/"));
}

}  // namespace
}  // namespace exfusion
