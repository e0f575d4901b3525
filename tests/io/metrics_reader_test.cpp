#include "io/metrics_reader.h"

#include <gtest/gtest.h>
#include <hdf5.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "core/error.h"
#include "io/files.h"
#include "io/metrics_file.h"
#include "test_folder.h"

namespace exfusion {
namespace {

class Reader : public TestFolder {
 protected:
  std::string path_ = at("metrics.h5");

  void write(std::int64_t rows) const {
    MetricsFile file(path_, {{"train", {{"loss"}, {"skipped", true}}}, {"fusion", {{"a", false, {2, 3}}}}},
                     -1);
    for (std::int64_t step = 1; step <= rows; ++step) {
      const double s = static_cast<double>(step);
      file.append("train", step, {{"loss", {1.0 / s}}, {"skipped", {2 * s}}});
    }
    file.flush();
  }
  // One data set `name` made by the plain HDF5 library.
  void write_foreign(const char* name, hid_t type, std::vector<hsize_t> sizes, std::vector<hsize_t> chunk,
                     bool compressed = false) const {
    const hid_t file = H5Fcreate(path_.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    const hid_t properties = H5Pcreate(H5P_DATASET_CREATE);
    if (!chunk.empty()) H5Pset_chunk(properties, static_cast<int>(chunk.size()), chunk.data());
    if (compressed) H5Pset_deflate(properties, 6);
    const hid_t space = H5Screate_simple(static_cast<int>(sizes.size()), sizes.data(), nullptr);
    const hid_t dataset = H5Dcreate2(file, name, type, space, H5P_DEFAULT, properties, H5P_DEFAULT);
    EXPECT_GE(dataset, 0);
    H5Dclose(dataset);
    H5Sclose(space);
    H5Pclose(properties);
    H5Fclose(file);
  }
};

TEST_F(Reader, GivesBackEveryRow) {
  write(3000);  // several chunks
  const MetricsReader reader(path_);
  const std::vector<double> loss = reader.column("train/loss").value();
  ASSERT_EQ(loss.size(), 3000u);
  EXPECT_EQ(loss[0], 1.0);
  EXPECT_EQ(loss[2999], 1.0 / 3000.0);
  EXPECT_EQ(reader.column("train/step")->back(), 3000.0);
  EXPECT_EQ(reader.column("train/skipped")->at(4), 10.0);
}

TEST_F(Reader, AColumnThatIsNotThereIsNone) {
  write(2);
  const MetricsReader reader(path_);
  EXPECT_FALSE(reader.column("train/nothing"));
  EXPECT_FALSE(reader.column("nothing/loss"));
}

TEST_F(Reader, AColumnWithoutRowsIsEmpty) {
  write(0);
  EXPECT_TRUE(MetricsReader(path_).column("train/loss")->empty());
}

TEST_F(Reader, ReadsWhatAKilledWriterLeft) {
  const pid_t child = ::fork();
  if (child == 0) {
    MetricsFile file(path_, {{"train", {{"loss"}}}}, -1);
    for (std::int64_t step = 1; step <= 5; ++step) file.append("train", step, {{"loss", {0.5}}});
    file.flush();
    ::raise(SIGKILL);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(MetricsReader(path_).column("train/loss")->size(), 5u);
}

TEST_F(Reader, SeveralNumbersPerRowAreRefused) {
  write(2);
  EXPECT_THROW(MetricsReader(path_).column("fusion/a"), FormatError);
}

TEST_F(Reader, ArraysOfAKnownWidthComeRowByRow) {
  {
    MetricsFile file(path_, {{"fusion", {{"sum", false, {3}}}}}, -1);
    file.append("fusion", 1, {{"sum", {1, 2, 3}}});
    file.append("fusion", 2, {{"sum", {4, 5, 6}}});
    file.flush();
  }
  const MetricsReader reader(path_);
  EXPECT_EQ(reader.column("fusion/sum", 3).value(), (std::vector<double>{1, 2, 3, 4, 5, 6}));
  EXPECT_THROW(reader.column("fusion/sum", 2), FormatError);
  EXPECT_THROW(reader.column("fusion/sum"), FormatError);
  EXPECT_THROW(reader.column("fusion/step", 1), FormatError);
}

TEST_F(Reader, TablesComeRowByRowAndSayTheirSizes) {
  {
    MetricsFile file(path_, {{"load", {{"count", false, {2, 3}}}}}, -1);
    file.append("load", 1, {{"count", {1, 2, 3, 4, 5, 6}}});
    file.append("load", 2, {{"count", {7, 8, 9, 10, 11, 12}}});
    file.flush();
  }
  const MetricsReader reader(path_);
  EXPECT_EQ(reader.row_shape("load/count").value(), (std::vector<std::uint64_t>{2, 3}));
  EXPECT_TRUE(reader.row_shape("load/step")->empty());
  EXPECT_FALSE(reader.row_shape("load/nothing"));
  const std::vector<double> values = reader.column("load/count", 6).value();
  ASSERT_EQ(values.size(), 12u);
  EXPECT_EQ(values[7], 8.0);
  EXPECT_THROW(reader.column("load/count", 3), FormatError);
}

TEST_F(Reader, RowsOfNoPossibleSizeAreRefused) {
  write_foreign("loss", H5T_NATIVE_DOUBLE, {4, hsize_t{1} << 40}, {1, 1024});
  EXPECT_THROW(MetricsReader(path_).row_shape("loss"), FormatError);
  write_foreign("loss", H5T_NATIVE_DOUBLE, {4, hsize_t{1} << 16, hsize_t{1} << 16}, {1, 1, 1024});
  EXPECT_THROW(MetricsReader(path_).row_shape("loss"), FormatError);
}

TEST_F(Reader, AGroupIsNoColumn) {
  write(2);
  EXPECT_THROW(MetricsReader(path_).column("train"), FormatError);
}

TEST_F(Reader, OtherTypesAndStorageAreRefused) {
  write_foreign("loss", H5T_NATIVE_FLOAT, {4}, {4});
  EXPECT_THROW(MetricsReader(path_).column("loss"), FormatError);
  write_foreign("loss", H5T_NATIVE_DOUBLE, {4}, {});
  EXPECT_THROW(MetricsReader(path_).column("loss"), FormatError);
  write_foreign("loss", H5T_NATIVE_DOUBLE, {4}, {4}, true);
  EXPECT_THROW(MetricsReader(path_).column("loss"), FormatError);
  write_foreign("loss", H5T_NATIVE_DOUBLE, {4}, {4});
  EXPECT_EQ(MetricsReader(path_).column("loss")->size(), 4u);
}

TEST_F(Reader, MoreRowsThanTheFileCanHoldAreRefusedBeforeTheyAreAllocated) {
  write_foreign("loss", H5T_NATIVE_DOUBLE, {hsize_t{1} << 50}, {1024});
  try {
    MetricsReader(path_).column("loss");
    FAIL();
  } catch (const FormatError& error) {
    EXPECT_NE(std::string(error.what()).find("more than the file can hold"), std::string::npos)
        << error.what();
  }
}

TEST_F(Reader, WhatIsNoHdf5IsRefused) {
  write_file(path_, "accuracy: 100 %");
  EXPECT_THROW(MetricsReader{path_}, FormatError);
  EXPECT_THROW(MetricsReader{at("nothing.h5")}, FileError);
}

}  // namespace
}  // namespace exfusion
