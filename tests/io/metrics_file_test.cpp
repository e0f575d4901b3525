#include "io/metrics_file.h"

#include <gtest/gtest.h>
#include <hdf5.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <csignal>

#include "core/error.h"
#include "io/files.h"
#include "test_folder.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;

const std::vector<SeriesGroup> kGroups = {{"train", {{"loss", false, {}}, {"samples", true, {}}}},
                                          {"fusion", {{"a", false, {2, 3}}}}};

MetricsRow train_row(std::int64_t step) {
  return {{"loss", {1.0 / static_cast<double>(step)}}, {"samples", {static_cast<double>(64 * step)}}};
}

void append(MetricsFile& file, std::int64_t first, std::int64_t last) {
  for (std::int64_t step = first; step <= last; ++step) {
    file.append("train", step, train_row(step));
    const double s = static_cast<double>(step);
    file.append("fusion", step, {{"a", {s, s + 1, s + 2, s + 3, s + 4, s + 5}}});
  }
}

class Metrics : public TestFolder {
 protected:
  std::string path_ = at("metrics.h5");

  // Reads a data set with the plain HDF5 library.
  std::vector<double> read(const std::string& name, unsigned flags = H5F_ACC_RDONLY) const {
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
    const hid_t file = H5Fopen(path_.c_str(), flags, H5P_DEFAULT);
    if (file < 0) return {-1.0};
    const hid_t dataset = H5Dopen2(file, name.c_str(), H5P_DEFAULT);
    const hid_t space = H5Dget_space(dataset);
    std::vector<double> values(static_cast<std::size_t>(H5Sget_simple_extent_npoints(space)));
    EXPECT_GE(H5Dread(dataset, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), 0);
    H5Sclose(space);
    H5Dclose(dataset);
    H5Fclose(file);
    return values;
  }
  // Appends rows in a process of its own that ends by SIGKILL, with the file open.
  void append_and_be_killed(std::int64_t keep_through_step, std::int64_t first, std::int64_t last) const {
    const pid_t child = ::fork();
    if (child == 0) {
      MetricsFile file(path_, kGroups, keep_through_step);
      append(file, first, last);
      ::raise(SIGKILL);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  }
  std::string refusal(const std::vector<SeriesGroup>& groups, std::int64_t keep) const {
    return message_of<FormatError>([&] { MetricsFile(path_, groups, keep); });
  }
};

TEST_F(Metrics, RowsReadBackAfterTheEnd) {
  {
    MetricsFile file(path_, kGroups, -1);
    append(file, 1, 3);
  }
  EXPECT_EQ(read("/train/step"), (std::vector<double>{1, 2, 3}));
  EXPECT_EQ(read("/train/loss"), (std::vector<double>{1.0, 0.5, 1.0 / 3.0}));
  EXPECT_EQ(read("/train/samples"), (std::vector<double>{64, 128, 192}));
  EXPECT_EQ(read("/fusion/a"), (std::vector<double>{1, 2, 3, 4, 5, 6, 2, 3, 4, 5, 6, 7, 3, 4, 5, 6, 7, 8}));
  EXPECT_FALSE(fs::exists(path_ + ".tmp"));
}

TEST_F(Metrics, NonFiniteNumbersAreKept) {
  {
    MetricsFile file(path_, {{"train", {{"loss", false, {}}}}}, -1);
    file.append("train", 1, {{"loss", {NAN}}});
    file.append("train", 2, {{"loss", {-INFINITY}}});
  }
  EXPECT_TRUE(std::isnan(read("/train/loss")[0]));
  EXPECT_EQ(read("/train/loss")[1], -INFINITY);
}

TEST_F(Metrics, AKilledWritersRowsAreThere) {
  append_and_be_killed(-1, 1, 5);
  EXPECT_EQ(read("/train/step"), (std::vector<double>{-1}));  // the plain way of opening refuses such a file
  EXPECT_EQ(read("/train/step", H5F_ACC_RDONLY | H5F_ACC_SWMR_READ), (std::vector<double>{1, 2, 3, 4, 5}));
}

TEST_F(Metrics, AResumedRunGoesOnAfterAKill) {
  append_and_be_killed(-1, 1, 5);
  append_and_be_killed(3, 4, 4);
  {
    MetricsFile file(path_, kGroups, 4);
    append(file, 5, 6);
  }
  EXPECT_EQ(read("/train/step"), (std::vector<double>{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(read("/train/loss")[5], 1.0 / 6.0);
  EXPECT_EQ(read("/fusion/step"), (std::vector<double>{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(read("/fusion/a").back(), 11.0);
}

TEST_F(Metrics, AResumedRunGoesOnAfterACleanEnd) {
  {
    MetricsFile file(path_, kGroups, -1);
    append(file, 1, 2500);  // more than two chunks
  }
  {
    MetricsFile file(path_, kGroups, 2200);
    append(file, 2201, 2203);
  }
  const std::vector<double> steps = read("/train/step"), a = read("/fusion/a");
  ASSERT_EQ(steps.size(), 2203u);
  ASSERT_EQ(a.size(), 2203u * 6);
  for (std::size_t i = 0; i < steps.size(); ++i) {
    ASSERT_EQ(steps[i], static_cast<double>(i + 1));
    ASSERT_EQ(a[6 * i + 5], steps[i] + 5);
  }
}

TEST_F(Metrics, KeepingNothingAndStartingAnew) {
  { MetricsFile file(path_, kGroups, 7); }  // nothing there yet
  {
    MetricsFile file(path_, kGroups, -1);
    append(file, 1, 3);
  }
  { MetricsFile file(path_, kGroups, 0); }
  EXPECT_TRUE(read("/train/step").empty());
  {
    MetricsFile file(path_, kGroups, -1);
    append(file, 1, 3);
  }
  { MetricsFile file(path_, {{"other", {}}}, -1); }
  EXPECT_TRUE(read("/other/step").empty());
}

TEST_F(Metrics, ATornAppendIsCutOff) {
  {
    MetricsFile file(path_, kGroups, -1);
    append(file, 1, 3);
  }
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  const hid_t file = H5Fopen(path_.c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
  const auto extend = [&](const char* name, std::vector<hsize_t> size) {
    const hid_t dataset = H5Dopen2(file, name, H5P_DEFAULT);
    ASSERT_GE(H5Dset_extent(dataset, size.data()), 0);
    H5Dclose(dataset);
  };
  extend("/train/loss", {4});      // one column is longer than the others
  extend("/fusion/a", {4, 2, 3});  // all columns are, but nothing was written
  extend("/fusion/step", {4});
  H5Fclose(file);
  {
    MetricsFile resumed(path_, kGroups, 9);
    append(resumed, 4, 4);
  }
  EXPECT_EQ(read("/train/step"), (std::vector<double>{1, 2, 3, 4}));
  EXPECT_EQ(read("/train/loss")[3], 0.25);
  EXPECT_EQ(read("/fusion/step"), (std::vector<double>{1, 2, 3, 4}));
}

TEST_F(Metrics, ADamagedOrForeignFileIsRefusedAndKept) {
  write_file(path_, "this is no HDF5 file");
  EXPECT_TRUE(contains(refusal(kGroups, 1), path_ + ": not a readable HDF5 file"));
  EXPECT_EQ(read_file(path_), "this is no HDF5 file");
  EXPECT_FALSE(fs::exists(path_ + ".tmp"));
  write_file(path_, "");
  EXPECT_TRUE(contains(refusal(kGroups, 1), "move the file away"));
  {
    MetricsFile file(path_, kGroups, -1);
    append(file, 1, 2);
  }
  const std::string whole = read_file(path_);
  write_file(path_, whole.substr(0, whole.size() / 2));
  EXPECT_TRUE(contains(refusal(kGroups, 1), path_));
}

// A wrong checksum must not be retried for minutes, either.
TEST_F(Metrics, MutatedFilesAreReadOrRefused) {
  {
    MetricsFile file(path_, kGroups, -1);
    append(file, 1, 20);
  }
  const std::string whole = read_file(path_);
  int refused = 0;
  for (std::size_t position = 5; position < std::min<std::size_t>(whole.size(), 4000); position += 37) {
    std::string bytes = whole;
    bytes[position] = static_cast<char>(~bytes[position]);
    write_file(path_, bytes);
    try {
      MetricsFile(path_, kGroups, 20);
    } catch (const FormatError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 10);
}

TEST_F(Metrics, OtherColumnsAreRefusedByName) {
  {
    MetricsFile file(path_, kGroups, -1);
    append(file, 1, 2);
  }
  EXPECT_TRUE(contains(refusal({{"train", {{"lr", false, {}}}}}, 1), "no data set /train/lr"));
  EXPECT_TRUE(contains(refusal({{"eval", {}}}, 1), "no data set /eval/step"));
  EXPECT_TRUE(contains(refusal({{"fusion", {{"a", false, {3, 2}}}}}, 1), "/fusion/a has another shape"));
  EXPECT_TRUE(contains(refusal({{"fusion", {{"a", false, {}}}}}, 1), "/fusion/a has another shape"));
  EXPECT_TRUE(contains(refusal({{"train", {{"loss", true, {}}}}}, 1), "/train/loss must hold int64"));
}

TEST_F(Metrics, AFileThatClaimsTooManyRowsIsRefused) {
  {
    MetricsFile file(path_, {{"train", {}}}, -1);
    file.append("train", 1, {});
  }
  const hid_t file = H5Fopen(path_.c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
  const hid_t dataset = H5Dopen2(file, "/train/step", H5P_DEFAULT);
  const hsize_t rows = 1ull << 50;
  ASSERT_GE(H5Dset_extent(dataset, &rows), 0);
  H5Dclose(dataset);
  H5Fclose(file);
  EXPECT_TRUE(contains(refusal({{"train", {}}}, 1), "more than the file can hold"));
}

TEST_F(Metrics, ARowMustFitItsGroup) {
  MetricsFile file(path_, kGroups, -1);
  append(file, 1, 2);
  const auto appended = [&](const std::string& group, std::int64_t step, const MetricsRow& row) {
    return message_of<FormatError>([&] { file.append(group, step, row); });
  };
  EXPECT_TRUE(contains(appended("eval", 3, {}), "no group /eval"));
  EXPECT_TRUE(contains(appended("train", 3, {{"loss", {1}}}), "/train/samples: no value for step 3"));
  EXPECT_TRUE(contains(appended("train", 3, {{"loss", {1}}, {"samples", {1}}, {"x", {1}}}), "does not have"));
  EXPECT_TRUE(contains(appended("train", 3, {{"loss", {1, 2}}, {"samples", {1}}}), "/train/loss: 2 values"));
  EXPECT_TRUE(contains(appended("train", 3, {{"loss", {1}}, {"samples", {0.5}}}), "integers"));
  EXPECT_TRUE(contains(appended("train", 3, {{"loss", {1}}, {"samples", {NAN}}}), "integers"));
  EXPECT_TRUE(contains(appended("train", 1, train_row(1)), "step 1 after step 2"));
  EXPECT_TRUE(contains(message_of<FormatError>([&] {
                         MetricsFile(at("x"), {{"g", {{"c", false, {0}}}}}, -1);
                       }),
                       "/g/c"));
  file.append("train", 3, train_row(3));  // what was refused left no trace
  EXPECT_EQ(read("/train/loss", H5F_ACC_RDONLY | H5F_ACC_SWMR_READ).size(), 3u);
}

TEST_F(Metrics, AFolderThatIsMissingIsNamed) {
  EXPECT_TRUE(contains(message_of<FileError>([&] { MetricsFile(at("no/metrics.h5"), kGroups, -1); }),
                       "No such file or directory"));
}

TEST_F(Metrics, HDF5PrintsNothing) {
  write_file(path_, "no HDF5");
  ::testing::internal::CaptureStderr();
  refusal(kGroups, 1);
  message_of<FileError>([&] { MetricsFile(at("no/metrics.h5"), kGroups, -1); });
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
}

TEST_F(Metrics, GroupsMayLieWithinGroupsAndAreCarriedOver) {
  const std::vector<SeriesGroup> nested = {{"analysis/fused/layer_000", {{"nmi"}}},
                                           {"analysis/fused/layer_001", {{"nmi"}}}};
  { MetricsFile(path_, nested, -1).append("analysis/fused/layer_001", 4, {{"nmi", {0.5}}}); }
  { MetricsFile(path_, nested, 4).append("analysis/fused/layer_001", 8, {{"nmi", {0.25}}}); }
  EXPECT_EQ(read("analysis/fused/layer_001/step"), (std::vector<double>{4, 8}));
  EXPECT_EQ(read("analysis/fused/layer_001/nmi"), (std::vector<double>{0.5, 0.25}));
}

}  // namespace
}  // namespace exfusion
