#include "compare/planned_run.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "core/error.h"
#include "io/metrics_file.h"
#include "support/test_folder.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;

class OneRun : public testing::Test {
 protected:
  OneRun() {
    run_.name = "steps/dense/seed-1";
    run_.sets = {"fusion=none", "seed=1"};
    fs::create_directories(launch_.runs / run_.name);
  }
  // A metrics.h5 of three steps in the run's folder.
  void write_metrics() const {
    MetricsFile file((launch_.runs / run_.name / "metrics.h5").string(),
                     {{"train", {{"step_time"}}},
                      {"eval", {{"accuracy"}}},
                      {"ema", {{"accuracy"}}},
                      {"validation", {{"accuracy"}}},
                      {"cost", {{"flops_per_sample"}, {"parameters_deployed"}}}},
                     -1);
    const std::vector<double> times = {0.5, 0.1, 0.3};
    for (std::int64_t step = 1; step <= 3; ++step)
      file.append("train", step, {{"step_time", {times[static_cast<std::size_t>(step - 1)]}}});
    for (const std::int64_t step : {2, 3}) {
      const double accuracy = 0.1 * static_cast<double>(step);
      file.append("eval", step, {{"accuracy", {accuracy}}});
      file.append("ema", step, {{"accuracy", {accuracy + 0.5}}});
      file.append("validation", step, {{"accuracy", {accuracy + 0.25}}});
      file.append("cost", step, {{"flops_per_sample", {2e6}}, {"parameters_deployed", {1000.0}}});
    }
    file.flush();
  }
  std::string words(std::size_t command) const {
    std::string all;
    const Job job = run_job(launch_, run_);
    for (const std::string& word : job.commands.at(command).words) all += word + " ";
    return all;
  }

  TestFolder folder_;
  Launch launch_{"/programs", folder_ / "runs", "a.yaml", "fashion_mnist", "", "fp32"};
  PlannedRun run_;
};

TEST_F(OneRun, StartsWithItsSets) {
  EXPECT_EQ(words(0), "/programs/exfusion-train a.yaml --out " + (launch_.runs / run_.name).string() +
                          " --overwrite --set fusion=none --set seed=1 ");
}

TEST_F(OneRun, AnInterruptedOneGoesOn) {
  write_bytes(launch_.runs / run_.name / "recipe.yaml", "x");
  EXPECT_EQ(words(0), "/programs/exfusion-train --resume " + (launch_.runs / run_.name).string() + " ");
}

TEST_F(OneRun, AScaledOneNamesTheRunThatScalesIt) {
  run_.scaled_by = "steps/learned_free/seed-1";
  EXPECT_NE(words(0).find("--set control_from=" + (launch_.runs / run_.scaled_by).string()),
            std::string::npos);
  EXPECT_EQ(run_job(launch_, run_).after, run_.scaled_by);
}

TEST_F(OneRun, ASoupIsExportedAndEvaluated) {
  run_.scored = Scored::uniform_soup;
  launch_.root = "/data";
  EXPECT_NE(words(1).find("exfusion-export " + (launch_.runs / run_.name).string() + " --average 5 -o"),
            std::string::npos);
  EXPECT_NE(words(2).find("--data fashion_mnist --precision fp32 --json --root /data"), std::string::npos);
}

TEST_F(OneRun, TheResultIsReadFromItsMetricsAndKept) {
  EXPECT_FALSE(kept_result(launch_, run_));
  write_metrics();
  keep_result(launch_, run_);
  const RunResult result = kept_result(launch_, run_).value();
  EXPECT_EQ(result.steps, 3);
  EXPECT_DOUBLE_EQ(result.accuracy, 0.3);
  EXPECT_DOUBLE_EQ(result.validation_accuracy.value(), 0.55);
  EXPECT_DOUBLE_EQ(result.step_time, 0.3);
  EXPECT_DOUBLE_EQ(result.seconds, 0.9);
  EXPECT_DOUBLE_EQ(result.flops_per_sample.value(), 2e6);
  EXPECT_FALSE(result.peak_memory);
  EXPECT_FALSE(result.identical_to_dense);
}

TEST_F(OneRun, TheMovingAverageIsScoredByItself) {
  write_metrics();
  run_.scored = Scored::moving;
  EXPECT_DOUBLE_EQ(keep_result(launch_, run_).accuracy, 0.8);
}

TEST_F(OneRun, TheSoupIsScoredByItsEvaluation) {
  write_metrics();
  run_.scored = Scored::uniform_soup;
  write_bytes(launch_.runs / "steps/dense/seed-1.soup.json", "{\"accuracy\": 0.625}");
  EXPECT_DOUBLE_EQ(keep_result(launch_, run_).accuracy, 0.625);
  write_bytes(launch_.runs / "steps/dense/seed-1.soup.json", "{\"accuracy\": \"high\"}");
  EXPECT_THROW(keep_result(launch_, run_), FormatError);
}

TEST_F(OneRun, OneRefusedAsIdenticalIsRemembered) {
  keep_identical(launch_, run_);
  EXPECT_TRUE(kept_result(launch_, run_)->identical_to_dense);
}

TEST_F(OneRun, AResultOfOtherSettingsIsNotTaken) {
  write_metrics();
  keep_result(launch_, run_);
  run_.sets.push_back("optim.lr=1");
  EXPECT_THROW(kept_result(launch_, run_), FormatError);
}

TEST_F(OneRun, ADamagedResultIsRefused) {
  for (const char* text : {"", "[1]", "{}", "{\"sets\": [\"fusion=none\", \"seed=1\"], \"steps\": 1e300}"}) {
    write_bytes(launch_.runs / "steps/dense/seed-1.json", text);
    EXPECT_THROW(kept_result(launch_, run_), FormatError) << text;
  }
}

TEST_F(OneRun, ARunWithoutRowsIsRefused) {
  MetricsFile((launch_.runs / run_.name / "metrics.h5").string(), {{"eval", {{"accuracy"}}}}, -1);
  EXPECT_THROW(keep_result(launch_, run_), FormatError);
}

}  // namespace
}  // namespace exfusion
