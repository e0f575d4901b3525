#include "inspect/logged_congestion.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "core/error.h"
#include "io/metrics_file.h"
#include "support/test_folder.h"

namespace exfusion {
namespace {

constexpr std::int64_t kBatches = 6, kExperts = 4, kTopK = 2, kTokens = 50;

using Json = nlohmann::ordered_json;

class LoggedCongestion : public testing::Test {
 protected:
  const TestFolder folder_;
  const std::string path_ = (folder_ / "metrics.h5").string();
  const Json layers_ = Json::array({{{"layer", 0}}, {{"layer", 2}}});

  // Two rows of layers 0 and 2; the last batch of the second has no images. Sigmas 0.7 and 2.
  void write(double count_of_first = 20.0, bool with_load = true) const {
    const std::vector<std::int64_t> table = {kBatches, kExperts};
    std::vector<SeriesGroup> groups;
    for (const char* layer : {"layer_000", "layer_002"}) {
      groups.push_back(
          {std::string("analysis/load/") + layer,
           {{"tokens", false, {kBatches}}, {"count", false, table}, {"routes", false, {8, kTopK}}}});
      groups.push_back({std::string("analysis/congestion/") + layer,
                        {{"sum_prob", false, table},
                         {"sum_logit", false, table},
                         {"sum_logit_sq", false, table},
                         {"sigma"}}});
    }
    if (!with_load)
      std::erase_if(groups, [](const SeriesGroup& one) { return one.name.starts_with("analysis/load"); });
    MetricsFile file(path_, groups, -1);
    std::mt19937 random(1);
    std::normal_distribution<double> noise(0.0, 0.05);
    for (const std::int64_t step : {1, 8}) {
      std::vector<double> tokens(kBatches, kTokens), count, prob, logit, logit_sq;
      for (std::int64_t b = 0; b < kBatches; ++b) {
        for (const double share : {count_of_first, 22.0, 28.0, 30.0}) {
          count.push_back(share);
          prob.push_back(share / 2.0);
          const double mean = share / 10.0 + noise(random);
          logit.push_back(kTokens * mean);
          logit_sq.push_back(kTokens * (mean * mean + 1.0));
        }
      }
      if (step == 8) tokens.back() = NAN;
      for (const SeriesGroup& group : groups) {
        if (group.name.starts_with("analysis/load"))
          file.append(group.name, step,
                      {{"tokens", tokens}, {"count", count}, {"routes", std::vector<double>(16, 0.0)}});
        else
          file.append(group.name, step,
                      {{"sum_prob", prob},
                       {"sum_logit", logit},
                       {"sum_logit_sq", logit_sq},
                       {"sigma", {step == 1 ? 0.7 : 2.0}}});
      }
    }
    file.flush();
  }
  Json read() const {
    return logged_congestion(path_, layers_, [](double) {});
  }
};

TEST_F(LoggedCongestion, EveryStepHasItsLayersWithTheSigmaOfTheRun) {
  write();
  const Json found = read();
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[1].at("model").at("step"), 8.0);
  for (std::size_t row = 0; row < 2; ++row) {
    ASSERT_EQ(found[row].at("layers").size(), 2u);
    for (const Json& layer : found[row].at("layers")) {
      EXPECT_NEAR(layer.at("sigma").get<double>(), row == 0 ? 0.7 : 2.0, 1e-9);
      EXPECT_LE(layer.at("gamma_ci")[0].get<double>(), layer.at("gamma_eff").get<double>());
      EXPECT_LE(layer.at("gamma_eff").get<double>(), layer.at("gamma_ci")[1].get<double>());
      EXPECT_NEAR(layer.at("gamma_excess").get<double>(),
                  layer.at("gamma_eff").get<double>() - layer.at("gamma_null").get<double>(), 1e-12);
      EXPECT_FALSE(layer.contains("heldout_l1"));
    }
    EXPECT_TRUE(found[row].at("model").at("gamma_excess_ci").is_array());
  }
}

TEST_F(LoggedCongestion, ARunWithoutLoadsHasNothing) {
  write(20.0, /*with_load=*/false);
  EXPECT_TRUE(read().empty());
  EXPECT_TRUE(logged_congestion(folder_ / "nothing.h5", layers_, [](double) {}).empty());
}

TEST_F(LoggedCongestion, SumsThatCannotBeAreRefusedWithTheirStep) {
  write(21.0);
  try {
    read();
    FAIL() << "was read";
  } catch (const FormatError& error) {
    EXPECT_NE(std::string(error.what()).find("metrics.h5: step 1: layer_000/count[0]"), std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace exfusion
